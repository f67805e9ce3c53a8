"""Defences: those that a dump shows, and the usual ones as functions."""
