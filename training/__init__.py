import serving  # noqa: F401  first of all: it starts the process
