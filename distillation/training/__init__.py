"""The one training loop, and what every training shares: recipes, processes, states, the finished folder."""
