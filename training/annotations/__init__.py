"""Readers of what annotation tools write. Each file of a tool has `recognises(source)` and `read(source)`."""
