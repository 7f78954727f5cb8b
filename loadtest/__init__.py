"""Load tests of the service: the same questions to teacher and student, answers checked, times compared in pairs."""
