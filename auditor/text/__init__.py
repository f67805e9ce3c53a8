"""Language models: the text in the gradient. One frame of its own beside that of the pictures."""
