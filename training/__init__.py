import logging

from serving.common import process_setup  # noqa: F401  first of all

# Or it says where it keeps its list of fonts when there is no home; it is imported by the report.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
