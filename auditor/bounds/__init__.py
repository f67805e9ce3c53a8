"""What the dump can tell at most: the noise floor of a fit, Fisher information, privacy bounds."""
