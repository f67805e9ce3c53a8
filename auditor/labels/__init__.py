"""Counts of labels by simulation on the audited model: pictures, simulated heads, an estimate."""
