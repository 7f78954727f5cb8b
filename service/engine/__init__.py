"""What computes: worker processes over a socket each, the queue in front of them, and what is learned about the cost of a batch."""
