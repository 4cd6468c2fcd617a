"""How the files begin that batch jobs write for annotation tools.

Neither the tools nor JSON libraries write them so: a file that begins otherwise is one that a person has saved. Needs
the standard library only.
"""

from pathlib import Path

BY = "predictions of a kerasseg model"

HEADS = {
    # With spaces that neither the tools nor json.dump write: a script may have corrected a file, too.
    "labelme": '{ "version": "5.5.0", "flags": {}, "shapes": [',
    "coco": f'{{ "info": {{"description": "{BY}"',
    "cvat": '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n<meta>\n<task>\n'
    f"<name>{BY}</name>",
    "label-studio": f'[\n{{"meta": {{"made_by": "{BY}"}}',
}
"""By tool."""


def begins_as(path: Path, head: str) -> bool:
    """Whether there is a file that begins so."""
    try:
        with path.open("rb") as file:
            return file.read(len(head.encode())) == head.encode()
    except OSError:
        return False


def is_predicted(path: Path) -> bool:
    """Whether a batch job wrote the file, and nobody has saved it since."""
    return any(begins_as(path, head) for head in HEADS.values())
