"""Weights in fewer bits, within a loss of F1."""
