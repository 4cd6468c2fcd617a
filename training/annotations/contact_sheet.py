"""One image that shows whether an import went right: small images with their label maps, and the classes' colours."""

from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from serving.common.images import Palette, overlay

TILE = 240
"""The longer side of a small image, pixels."""

_LINE, _COLUMNS, _GAP = 20, 6, 8


class Tile(NamedTuple):
    """A small image: its name, uint8 RGB (H, W, 3), and its label map, uint8 (H, W)."""

    name: str
    image_HWC: np.ndarray
    label_HW: np.ndarray


def contact_sheet(tiles: list[Tile], classes: tuple[str, ...], palette: Palette) -> Image.Image:
    """Draws the tiles in rows, each with its name, and below them a colour and a name for each class."""
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), 12)
    cell, columns = TILE + _GAP, max(1, min(_COLUMNS, len(tiles)))
    rows = -(-len(tiles) // columns)
    legend_columns = max(1, columns * cell // 160)
    legend_rows = -(-len(classes) // legend_columns)
    height = rows * (cell + _LINE) + legend_rows * _LINE + 2 * _GAP
    sheet = Image.new("RGB", (max(160, columns * cell) + _GAP, height), "white")
    pen = ImageDraw.Draw(sheet)
    for i, tile in enumerate(tiles):
        x, y = _GAP + i % columns * cell, _GAP + i // columns * (cell + _LINE)
        sheet.paste(Image.fromarray(overlay(tile.image_HWC, tile.label_HW, palette)), (x, y))
        pen.text((x, y + tile.image_HWC.shape[0] + 2), _short(tile.name, 34), "black", font)
    top = _GAP + rows * (cell + _LINE)
    for k, name in enumerate(classes):
        x, y = _GAP + k % legend_columns * 160, top + k // legend_columns * _LINE
        pen.rectangle((x, y + 2, x + 14, y + 16), tuple(palette[k]), "black")
        pen.text((x + 20, y + 2), _short(name, 20), "black", font)
    return sheet


def _short(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"…{text[1 - letters :]}"
