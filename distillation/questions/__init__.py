"""Question answering: training windows, losses, teachers' logits kept on disk."""
