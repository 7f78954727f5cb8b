"""The one training loop, and what every training shares: recipes, processes, states, the finished folder."""

STOPPED = 143  # exit status of a training that was stopped and saved its state: 128 + SIGTERM, as shells report it
