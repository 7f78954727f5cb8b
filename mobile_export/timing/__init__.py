"""Bytes and latency, one question at a time."""
