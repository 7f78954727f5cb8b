"""Checkpoints as they are opened for export, and stand-ins made from a configuration alone."""
