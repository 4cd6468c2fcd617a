import logging

import serving  # noqa: F401  first of all: it starts the process

# Without a home folder matplotlib, which the report imports, would print where it keeps its list of fonts.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
