"""Layer by layer from the gradient down to the input: what each layer says, and what it hides."""
