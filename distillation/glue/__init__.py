"""Classification: the tasks of GLUE, and IMDb."""
