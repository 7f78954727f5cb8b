"""Making what runs elsewhere from a checkpoint: model folders for serving, Core ML packages for phones."""
