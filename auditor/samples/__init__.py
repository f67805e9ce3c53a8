"""Inputs of a batch that were read one by one: the check of each, and what is said of them."""
