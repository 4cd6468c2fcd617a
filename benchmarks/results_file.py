"""Files of results: text around the tables that a benchmark writes."""

from pathlib import Path

from serving.common.files import write_atomically

BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"


def write_between_markers(path: Path, text: str) -> None:
    """Replaces the text between the file's markers; makes the file where there is none."""
    before, _, rest = path.read_text().partition(BEGIN) if path.exists() else ("", "", "")
    after = rest.partition(END)[2]
    write_atomically(path, f"{before}{BEGIN}{text}{END}{after}".encode())
