import logging

from serving.common import process_setup  # noqa: F401  first of all

# Without a home folder matplotlib, which the report imports, would print where it keeps its list of fonts.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
