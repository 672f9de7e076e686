"""What is said of runs later: scores, and evaluations."""
