"""What the benchmarks of keyed work let engines do, and others beside them: one job a function."""
