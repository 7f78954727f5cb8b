"""Teacher to student: growing, initialising, fine-tuning with and without a teacher, evaluation."""
