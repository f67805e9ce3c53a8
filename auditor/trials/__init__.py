"""The audit on trial: controls that must show nothing, dumps whose truth we know, and fidelity."""
