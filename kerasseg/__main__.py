"""The command `kerasseg`, and `python -m kerasseg`."""

import os
import sys
from pathlib import Path


def main() -> None:
    arrange_path()
    from kerasseg.command import main

    main()


def arrange_path() -> None:
    """Looks into the current folder last, for methods of the user's own.

    It may hold a `training` or `serving` of the user's own. A checkout has folders of these names too, which come
    first; in an installed package their names begin with `kerasseg.` (docs/decisions/commands.md).
    """
    here = os.getcwd()
    sys.path[:] = [entry for entry in sys.path if entry not in ("", here)] + [here]
    package = Path(__file__).parent
    if not (package / "training").is_dir():
        sys.path.insert(0, str(package.parent))


if __name__ == "__main__":
    main()
