"""What is measured, each with one command; results in `benchmarks/results`."""
