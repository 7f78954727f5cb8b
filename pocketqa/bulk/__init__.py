"""Questions by the million: a JSONL file in, a JSONL file out, on this machine or on a Ray cluster."""
