"""Which images are for training, validation and test, and what they are called."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

from serving.common.inputs import comparable
from training.annotations.contract import AnnotatedImage, Notes

CAMERA_NAMES = {"img", "image", "im", "dsc", "dscn", "dscf", "pxl", "p", "photo", "pic", "frame", "scan", "sample"}
"""What cameras and programs write before a running number. It says nothing about what images show together."""

_FRAME = re.compile(r"(.+?)[-_ .]+[a-zA-Z]{0,6}(\d+)")
_ROBOFLOW = re.compile(r"[._](jpe?g|png|webp|bmp)\.rf\.[0-9a-f]+$", re.I)


def groups_of(names: Sequence[str]) -> list[str]:
    """The group of each image: those of one group look alike, and must not be both trained and measured on.

    A group is a subfolder where images lie in several. Otherwise it is a clip: names that end in a number and are equal
    before it, where that part has a digit (clip1_0001), or the numbers have leading zeros and one length (park_0001).
    Copies of one image that Roboflow augmented are a group.
    """
    folders = [str(PurePosixPath(name).parent) for name in names]
    if len(set(folders)) > 1:
        return [f"folder {folder}" for folder in folders]
    stems = [_ROBOFLOW.sub("", PurePosixPath(name).stem) for name in names]
    frames = [_FRAME.fullmatch(stem) for stem in stems]
    numbers = defaultdict(list)
    for frame in frames:
        if frame:
            numbers[frame[1]].append(frame[2])
    clips = {
        clip
        for clip, found in numbers.items()
        if clip.lower() not in CAMERA_NAMES
        and (re.search(r"\d", clip) or (len(set(map(len, found))) == 1 and any(n.startswith("0") for n in found)))
    }
    if len(clips) == 1 and all(frame and frame[1] in clips for frame in frames):
        clips = set()  # all images look like one clip, which says nothing
    return [
        f"clip {frame[1]}" if frame and frame[1] in clips else f"image {stem}"
        for stem, frame in zip(stems, frames, strict=True)
    ]


def choose_splits(
    images: Sequence[AnnotatedImage], val: float, test: float, seed: int, notes: Notes
) -> list[str | None]:
    """The split of each image; None for one that is left out.

    Splits of the source are kept. Where it has no labelled images for val (or test), whole groups are taken from
    the labelled ones for training until the share is reached as nearly as they allow. Images without annotation are for
    training, except those that the source has for test. In a group of val or test they are left out: they show what
    is measured.

    Args:
        val: share 0..1 of the labelled images.
        test: share 0..1 of the labelled images.
        seed: of the choice of groups.
    """
    labeled = [image.draw is not None for image in images]
    splits = [image.split or "train" for image in images]
    splits = ["train" if split == "val" and not has else split for split, has in zip(splits, labeled, strict=True)]
    groups = groups_of([image.name for image in images])
    pool = [i for i in range(len(images)) if labeled[i] and splits[i] == "train"]
    if len({groups[i] for i in pool}) == 1 and len(pool) > 1 and (val or test):
        notes.add(
            "the labelled images are of one folder or clip, so they are split image by image: images that look alike "
            "are both trained and measured on, and scores are too good"
        )
        groups = [f"{group} {image.name}" for group, image in zip(groups, images, strict=True)]
    sizes = Counter(groups[i] for i in pool)
    order = sorted(sizes, key=lambda group: hashlib.sha256(f"{seed}/{group}".encode()).hexdigest())
    chosen: dict[str, str] = {}
    for split, share in (("test", test), ("val", val)):
        if any(has and s == split for has, s in zip(labeled, splits, strict=True)):
            continue
        left = [group for group in order if group not in chosen]
        for group in _fill([(group, sizes[group]) for group in left], share * sum(labeled)):
            chosen[group] = split
    for i, group in enumerate(groups):
        if group in chosen and splits[i] == "train":
            splits[i] = chosen[group]
    result: list[str | None] = []
    for i, image in enumerate(images):
        if groups[i] in chosen and not labeled[i]:
            notes.add("images without annotation, left out: their folder or clip is for validation or test", image.name)
            result.append(None)
        else:
            result.append(splits[i])
    return result


def _fill(sizes: list[tuple[str, int]], wanted: float) -> list[str]:
    """Groups with about so many images together; at least one where some are wanted, and never all."""
    if wanted <= 0 or len(sizes) < 2:
        return []
    taken: list[str] = []
    count = 0
    for group, size in sizes:
        if count + size <= max(1, round(wanted)):
            taken.append(group)
            count += size
    rest = sorted((size, i) for i, (group, size) in enumerate(sizes) if group not in taken)
    if rest and (not taken or abs(count + rest[0][0] - wanted) < abs(count - wanted)):
        taken.append(sizes[rest[0][1]][0])
    return taken if len(taken) < len(sizes) else taken[:-1]


def output_names(images: Sequence[AnnotatedImage]) -> list[str]:
    """What each image is called in the dataset folder, without extension: its stem; where two stems look the same, its
    path with "-" for "/"; where these do too, with its split, extension or a number as well."""
    names = [PurePosixPath(image.name).stem for image in images]
    for longer in (
        lambda i: str(PurePosixPath(images[i].name).with_suffix("")).replace("/", "-"),
        lambda i: f"{images[i].split}-{names[i]}" if images[i].split else names[i],
        lambda i: f"{names[i]}-{images[i].path.suffix[1:]}",
        lambda i: f"{names[i]}-{i}",
    ):
        times = Counter(map(comparable, names))
        again = [i for i, name in enumerate(names) if times[comparable(name)] > 1]
        replaced = {i: longer(i) for i in again}
        for i, name in replaced.items():
            names[i] = name
    return names
