"""The annotation tools that have one file for all images of a job, and how that file is put together.

What the file will have of an image is a line in `pieces-TOOL.jsonl`, appended when the image is done. When the last
image of a job is done, by whatever shard, these lines become the file, one after the other.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from serving.batch.annotations import coco, cvat, label_studio
from serving.batch.annotations.contract import Pieces, Segmented
from serving.batch.manifest import PIECES, EarlierRecords
from serving.common.artifact import ModelInfo
from serving.common.files import temporary_file, write_atomically
from serving.common.predictions import HEADS, begins_as


class Tool(Protocol):
    """What the file of each tool has."""

    FILE: str

    def piece(self, image: Segmented) -> dict[str, Any]:
        """What the file will have of an image, as JSON."""

    def assemble(self, pieces: Pieces, info: ModelInfo) -> Iterator[str]:
        """The file's text, part by part."""

    def extras(self, info: ModelInfo, polygons: bool) -> dict[str, str]:
        """By name, files that the tool needs too."""


TOOLS: dict[str, Tool] = {"coco": coco, "cvat": cvat, "label-studio": label_studio}


def require_own(folder: Path, tools: Iterable[str]) -> None:
    """What a person has put into the output under the name of a tool's file must not be written over.

    Raises:
        ValueError: there is such a file.
    """
    for tool in tools:
        path = folder / TOOLS[tool].FILE
        if path.is_file() and not begins_as(path, HEADS[tool]):
            raise ValueError(
                f"{path} cannot be read, or no batch job has written it: rename it, or choose another OUTPUT"
            )


def write_job_files(
    folder: Path, tools: Sequence[str], names: Sequence[str], info: ModelInfo, answer: dict[str, Any], polygons: bool
) -> list[Path]:
    """Writes the tools' files once every image of the job is done, by this shard or another one.

    Args:
        folder: the job's output.
        names: of all images of the job, in the order of the files. Those that failed are left out.
        answer: what the images' records must hold, so that a file is of one model.
        polygons: whether pieces have polygons in place of masks.

    Returns:
        The files that were written.
    """
    written = []
    for tool in tools:
        writer = TOOLS[tool]
        with EarlierRecords(folder) as records, EarlierRecords(folder, PIECES.format(tool)) as lines:

            def found() -> Iterator[tuple[str, dict[str, Any] | None]]:
                """Each image with its piece; None where it failed; those to come are left out."""
                for name in names:
                    record = records.find(name)
                    if answer.items() <= record.items():
                        line = lines.find(name) if record["status"] == "ok" else {}
                        if record["status"] != "ok" or line.get("key") == record["key"]:
                            yield name, line.get("piece")

            def pieces() -> Iterator[tuple[str, Any]]:
                return ((name, piece) for name, piece in found() if piece is not None)

            there = [piece is not None for _, piece in found()]
            if len(there) < len(names):
                left = len(names) - len(there)
                print(f"{writer.FILE} is written when all shards are done: {left} images are left", file=sys.stderr)
            elif any(there):
                with temporary_file(folder / writer.FILE) as file:
                    for text in writer.assemble(pieces, info):
                        file.write(text.encode())
                written.append(folder / writer.FILE)
                for name, text in writer.extras(info, polygons).items():
                    path = folder / name
                    if path.exists() and path.read_bytes() != text.encode():
                        print(f"{path} is kept as it is: remove it to get that of this model", file=sys.stderr)
                        continue
                    write_atomically(path, text.encode())
                    written.append(path)
            else:
                print(f"{writer.FILE} is not written: every image failed", file=sys.stderr)
    return written
