"""The networks as they are exported: float16-safe, one input, one module for each family and layout."""
