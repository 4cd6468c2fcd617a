"""Whether the values of label maps are class numbers: edges that were blended, binary label maps, palettes, classes."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np

from kerasseg.checks import first_few
from kerasseg.data.folder import ClassTable
from kerasseg.data.inspection import Inspection, joined
from kerasseg.data.pairs import Color, LabelMap
from kerasseg.data.problems import Finding
from kerasseg.losses import IGNORE_LABEL

# In clean label maps (CamVid, MSRC-21, NEU-SEG, CamVid as polygons and with its classes in other orders), 0 to 0.9 % of
# the places where a value changes go over a third one that lies between both. Saved as JPEG, or resized with
# interpolation, 18 to 47 % do, and 10 to 26 % where there are only four classes.
MIXED = 0.04

BLENDED = (
    "the edges were blended, by anti-aliasing, resizing or JPEG: export the label maps again without, resize with "
    "Image.NEAREST, and save as PNG only"
)

BINARY = "or write the object as 1: Image.fromarray((np.array(Image.open(f)) > 127).astype('uint8')).save(f)"


def binary_label_maps(result: Inspection) -> Iterable[Finding]:
    """Label maps in which 255 most likely is the object: certain where no label map of a split has a class but 0."""
    for split, maps in result.label_pixels.items():
        certain = not any(counts[1:IGNORE_LABEL].any() for counts in maps.values())
        if not certain and len(result.classes) > 2:
            continue
        kind = "mask of 0 and 255" if certain else "perhaps a mask of 0 and 255"
        for name, counts in maps.items():
            if counts[0] and counts[IGNORE_LABEL] and counts[0] + counts[IGNORE_LABEL] == counts.sum():
                yield Finding(kind, f"labels/{split}/{name}.png")


def check_palettes(result: Inspection, maps: dict[str, LabelMap], table: ClassTable | None) -> None:
    """Whether the palettes of label maps give one value one colour."""
    files: dict[int, dict[Color, list[str]]] = defaultdict(lambda: defaultdict(list))
    values: dict[Color, set[int]] = defaultdict(set)
    for file, label in maps.items():
        times = Counter(label.colors.values())
        for value, color in label.colors.items():
            files[value][color].append(file)
            if times[color] == 1:  # a colour that several values share (black without a name) identifies none of them
                values[color].add(value)
    different = [value for value in sorted(files) if len(files[value]) > 1]
    swapped = [value for value in different if any(len(values[color]) > 1 for color in files[value])]
    for value in (swapped or different)[:1]:
        uses = sorted(files[value].items(), key=lambda use: -len(use[1]))
        found = ", ".join(f"{color} in {len(names)} ({names[0]})" for color, names in uses[:3])
        others = f", and {len(swapped or different) - 1} more values" if len(swapped or different) > 1 else ""
        result.add(
            "error" if swapped else "warning",
            "labels/",
            f"the palettes of the label maps contradict each other: value {value} has the colour {found}{others}",
            "write the same number for the same colour in all of them: the number is the class, and programs that "
            "make a palette for each image may give one colour several numbers"
            if swapped
            else "if the numbers mean the same in all of them, leave it",
        )
    if table is None or table.palette is None or different:
        return
    named = {color: k for k, color in enumerate(table.palette)}
    for value, uses_of in sorted(files.items()):
        (color,) = uses_of
        if named.get(color, value) != value:
            result.add(
                "warning",
                "classes.json",
                f"its palette gives {color} to {table.classes[named[color]]!r}, whose number is {named[color]}; in the "
                f"palettes of the label maps it is the colour of {value}",
                "bring names and colours into the order of the numbers in the label maps",
            )
            return


def enough_classes(result: Inspection, named: bool, binary: bool) -> bool:
    """Whether there is a class besides the background. Otherwise it is an error, unless the label maps are known to be
    binary."""
    if named and len(result.classes) == 1:
        result.add(
            "error",
            "classes.json",
            f"one class ({result.classes[0]}): the background counts too, so there are at least 2",
            'name both: {"classes": ["background", "cat"]}, whose numbers in the label maps are 0 and 1',
        )
        return False
    black = [s for s, maps in result.label_pixels.items() if all(m[0] == m.sum() for m in maps.values())]
    for split in black:
        result.add(
            "error" if split == "train" else "warning",
            f"labels/{split}",
            f"all {len(result.label_pixels[split])} label maps are black, 0 everywhere: there is only background "
            + ("to learn" if split == "train" else "to measure"),
            "export the label maps again, with the objects in them as 1, 2, ...",
        )
    return binary or len(black) < len(result.label_pixels) or not black


def check_values(result: Inspection, maps: dict[str, LabelMap], values: np.ndarray, inferred: bool) -> None:
    solid = np.any([label.solid for label in maps.values()] or [np.zeros(256, bool)], axis=0)
    count, pixels = len(result.classes), result.pixels
    mixed = sum(label.mixed for label in maps.values()) / max(1, sum(label.edges for label in maps.values()))
    # Hardly anything but 0 and 255 covers more than a line.
    binary = (
        solid[0] and solid[IGNORE_LABEL] and pixels[1:IGNORE_LABEL][solid[1:IGNORE_LABEL]].sum() < 0.15 * pixels.sum()
    )
    remedy = f"{BLENDED}; {BINARY}" if binary and (inferred or count == 2) else BLENDED

    def on_edges_only(some: np.ndarray) -> bool:
        """Whether most of these values never fill 3x3 pixels; values of classes do."""
        return bool(len(some) >= 3 and np.count_nonzero(solid[some]) < len(some) / 2)

    if inferred and on_edges_only(values):
        result.classes = ()
        result.add(
            "error",
            "labels/",
            f"{len(values)} label values ({first_few(values)}), of which {np.count_nonzero(~solid[values])} are on "
            "edges only, never on 3x3 pixels: these are no classes",
            f"{remedy}; or, if they are thin classes, name them in classes.json",
        )
        return
    if inferred and len(values):
        result.add(
            "warning",
            "classes.json",
            f"not there; {count} class{'es are' if count > 1 else ' is'} inferred from the label values 0..{count - 1}",
            f'name the classes in it: {{"classes": [{first_few(map(json.dumps, result.classes))}]}}',
        )
    if not result.classes:  # classes.json is broken, and said to be
        return
    outside = values[values >= count]
    blended = False
    if len(outside):
        files = defaultdict(list)
        for file, label in maps.items():
            if label.counts[count:IGNORE_LABEL].any():
                folder, _, name = file.rpartition("/")
                files[folder].append(name)
        if blended := bool(not solid[outside].any() or on_edges_only(outside) or mixed > MIXED):
            fix = remedy
        elif values.min() == 1 and outside.tolist() == [count]:
            fix = "the classes seem to be numbered from 1: subtract 1 from every value but 255"
        else:
            fix = "write pixels of no class as 255, or add the missing names to classes.json"
        for folder, names in files.items():
            result.add(
                "error",
                joined(folder, names),
                f"label values {first_few(outside)} outside of the {count} classes (0..{count - 1})",
                fix,
            )
    elif mixed > MIXED:
        result.add(
            "warning",
            "labels/",
            f"at {mixed:.0%} of the edges between two label values lies a third value that is between the two",
            f"if that is no thin class, {BLENDED}",
        )
    unseen = [name for name, of_class in zip(result.classes, pixels[:count], strict=True) if not of_class]
    if unseen and len(values) and not blended:
        result.add(
            "warning",
            "labels/",
            f"no pixel of {first_few(unseen)} in any label map",
            "check the order of the names in classes.json, or leave the classes out"
            if not inferred
            else "check that the label values are class numbers, not grey values",
        )
