import logging

import serving  # noqa: F401  first of all: it starts the process

# Or it says where it keeps its list of fonts when there is no home; it is imported by the report.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
