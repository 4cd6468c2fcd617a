"""The wheel: one package, `kerasseg`, with the folders `training`, `export` and `serving` below it.

In a checkout these are packages of their own. Installed under such names they would hide a user's own, so in the wheel
they are `kerasseg.training`, `kerasseg.export` and `kerasseg.serving`, and every import of them names them so.
"""

import ast
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOMS = ("training", "export", "serving")


class CustomBuildHook(BuildHookInterface):
    """hatchling looks for a class of this name."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        self.folder = tempfile.mkdtemp()
        package = Path(self.folder, "kerasseg")
        shutil.copytree(Path(self.root, "kerasseg"), package, ignore=shutil.ignore_patterns("__pycache__"))
        for room in ROOMS:
            shutil.copytree(Path(self.root, room), package / room, ignore=shutil.ignore_patterns("__pycache__"))
        for path in package.rglob("*.py"):
            path.write_text(renamed(path.read_text(encoding="utf-8")), encoding="utf-8")
        build_data["force_include"][str(package)] = "kerasseg"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable":
            shutil.rmtree(self.folder)


def renamed(source: str) -> str:
    """The source with `from kerasseg.serving...` where it has `from serving...`.

    Raises:
        ValueError: it has `import serving...`, whose name would be used in the code after it.
    """
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ROOMS:
            line = lines[node.lineno - 1]
            lines[node.lineno - 1] = line.replace(f"from {node.module}", f"from kerasseg.{node.module}", 1)
        elif isinstance(node, ast.Import) and any(alias.name.split(".")[0] in ROOMS for alias in node.names):
            raise ValueError(f"line {node.lineno}: write from ... import ..., which the wheel can rename")
    return "".join(lines)
