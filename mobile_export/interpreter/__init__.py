"""A saved Core ML program, read and executed without Core ML."""
