"""Benchmarks, one command each; their results are in `benchmarks/results`."""

# First of all: it starts the process. Not `import serving`, which would stand in the way of `benchmarks.serving`.
from serving import start  # noqa: F401
