from serving import start  # noqa: F401  first of all
