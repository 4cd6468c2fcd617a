"""Batch jobs: `python -m serving.batch`."""
