"""What is measured, each with one command; results in `benchmarks/results`."""

import serving  # noqa: F401  first of all: it starts the process
