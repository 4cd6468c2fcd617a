"""What is measured, each with one command; results in `benchmarks/results`."""

from serving.common import process_setup  # noqa: F401  first of all
