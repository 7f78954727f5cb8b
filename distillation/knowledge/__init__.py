"""What a student learns from a teacher: the losses, and the recipes that weigh them."""
