"""Checkpoints as models: loading, growing, cutting, configuring."""
