"""What an ablation runs, what it costs and what it says."""
