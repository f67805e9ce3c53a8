"""Does the model look made to extract data? Statistics of its weights, without a dump."""
