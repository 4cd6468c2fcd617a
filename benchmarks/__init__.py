"""Benchmarks, one command each; their results are in `benchmarks/results`."""

from serving.common import process_setup  # noqa: F401  first of all
