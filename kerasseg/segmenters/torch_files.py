"""Files of PyTorch and safetensors as arrays, without PyTorch: only tensors are read, and no code of a file is run."""

import functools
import json
import math
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from serving.common.inputs import printable

LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
"""The start of a file of PyTorch before 1.6: the first of several pickles."""
BFLOAT16: np.dtype = np.dtype("V2")
"""Stands for bfloat16, the upper half of a float32."""
STORAGES: dict[str, np.dtype] = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": BFLOAT16,
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
SAFETENSORS: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
ORDER = (
    (r"^_?(conv_stem|conv1|conv0|bn0|bn1|stem|features\.(?:conv|norm)0)\b", r"0.\1"),
    (r"^_?(conv_head|bn2|norm|head\.norm|features\.norm5)\b", r"~.\1"),  # ~ is the last character
    (r"^_?(head|fc|classifier)\b", r"~~.\1"),
    (r"^features\.denseblock(\d+)", r"features.\1.0"),
    (r"^features\.transition(\d+)", r"features.\1.1"),
    (r"^(stages\.\d+)\.downsample", r"\1.0"),  # ConvNeXt's, before the blocks of its stage
    (r"\.se\.conv_reduce\b", ".se.0"),
    (r"\.downsample\.", ".~downsample."),  # ResNet's, after the longer way
)
"""Parts of names as others, so that the order of the alphabet and of numbers is the one in which layers run."""
MAX_HEAD = 100_000_000
"""Largest head of a safetensors file, bytes, as its own library allows."""

MOST_REPEATED = 8
"""Tensors may share numbers, and half precision doubles: they may have so many times the bytes of the file."""


def is_torch_file(path: Path) -> bool:
    """Whether the file is one that `read_tensors` reads, by its content."""
    with path.open("rb") as file:
        start = file.read(max(9, len(LEGACY_MAGIC)))
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                return any(name.endswith("/data.pkl") for name in archive.namelist())
        except (zipfile.BadZipFile, NotImplementedError):  # a damaged list of contents
            return False
    return start.startswith(LEGACY_MAGIC) or (start[8:9] == b"{" and int.from_bytes(start[:8], "little") < MAX_HEAD)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a `.pth`, `.pt`, `.bin` or `.safetensors` file, by their names and in the file's order. Half
    precision becomes float32.

    A checkpoint that holds a state among other things (`state_dict`, `model`) gives that state.

    Raises:
        ValueError: the file is damaged, or needs anything but tensors.
    """
    try:
        if zipfile.is_zipfile(path):
            state = _read_zip(path)
        else:
            with path.open("rb") as file:
                state = _read_legacy(file) if file.read(len(LEGACY_MAGIC)) == LEGACY_MAGIC else _read_safetensors(path)
        tensors: dict[str, np.ndarray] = {}
        room = MOST_REPEATED * path.stat().st_size
        for name, read in _state_of(state).items():
            if callable(read):
                tensor = tensors[printable(str(name))] = _single(read())
                room -= tensor.nbytes
                if room < 0:
                    raise ValueError(f"its tensors need more than {MOST_REPEATED} times its size, as no weights do")
        return tensors
    except ValueError as error:
        raise ValueError(f"the weights in {path} cannot be read: {printable(str(error))}") from error
    except Exception as error:  # pickle and zipfile raise anything for a damaged file
        message = printable(str(error))
        raise ValueError(f"the weights in {path} cannot be read: {message}; is the file complete?") from error


class _Storage(NamedTuple):
    """Numbers in a file, read when a tensor of them is wanted."""

    dtype: np.dtype
    read: Callable[[], bytes]


class _Tensors(pickle.Unpickler):
    """Makes functions that give tensors, and nothing else: any other name in the pickle is refused."""

    def __init__(self, file: IO[bytes], storage_of: Callable[[str], Callable[[], bytes]]):
        super().__init__(file, encoding="utf-8")
        self.storage_of = storage_of

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return type(name, (OrderedDict,), {})
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
            # A pickle can set attributes of what it is given (BUILD): it gets copies, so that nothing of ours changes.
            function = _tensor if name == "_rebuild_tensor_v2" else _parameter
            return lambda *arguments: function(*arguments)
        if module == "torch" and name in STORAGES:
            return name
        raise ValueError(f"it needs {module}.{name}, and only tensors are read: save the model's state_dict() only")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key, *_ = pid
        if kind != "storage" or storage not in STORAGES:
            raise ValueError(f"it holds something that is no tensor: {kind}")
        return _Storage(STORAGES[storage], self.storage_of(str(key)))


def _tensor(storage: _Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> Callable[[], np.ndarray]:
    # A pickle chooses the arguments. NumPy's integers overflow, and then the bounds below would hold for any address.
    if not isinstance(storage, _Storage) or any(type(number) is not int for number in (offset, *shape, *strides)):
        raise ValueError("it holds a tensor whose numbers, shape or strides are something else")

    def read() -> np.ndarray:
        numbers = np.frombuffer(storage.read(), storage.dtype)
        last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
        if min((offset, *shape, *strides)) < 0 or (0 not in shape and last >= len(numbers)):
            raise ValueError(f"a tensor {shape} lies outside of its {len(numbers)} numbers; is the file complete?")
        if math.prod(shape) > len(numbers):  # by strides of 0, a small file could fill the memory
            raise ValueError(f"a tensor {shape} repeats its {len(numbers)} numbers, as no weights do")
        steps = [step * storage.dtype.itemsize for step in strides]
        return np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps).copy()

    return read


def _parameter(tensor: Callable[[], np.ndarray], *_: Any) -> Callable[[], np.ndarray]:
    return tensor


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        head = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder = head.removesuffix("data.pkl")
        if packed := [each.filename for each in archive.infolist() if each.compress_type != zipfile.ZIP_STORED]:
            raise ValueError(f"{packed[0]} is compressed, which PyTorch never does, and could fill the memory")

        def storage_of(key: str) -> Callable[[], bytes]:
            def read() -> bytes:
                with zipfile.ZipFile(path) as archive:
                    return archive.read(f"{folder}data/{key}")

            return read

        with archive.open(head) as file:
            return _Tensors(file, storage_of).load()


def _read_legacy(file: IO[bytes]) -> Any:
    """After the magic number: protocol, system, the state, the keys of the storages, and their numbers."""
    numbers: dict[str, bytes] = {}
    dtypes: dict[str, int] = {}
    for _ in range(2):
        _Tensors(file, lambda key: lambda: b"").load()

    class Sized(_Tensors):
        def persistent_load(self, pid: Any) -> _Storage:
            storage = super().persistent_load(pid)
            dtypes[str(pid[2])] = storage.dtype.itemsize
            return storage

    state = Sized(file, lambda key: lambda: numbers[key]).load()
    for key in map(str, _Tensors(file, lambda key: lambda: b"").load()):
        (count,) = struct.unpack("<q", file.read(8))
        numbers[key] = file.read(count * dtypes[key])
        if len(numbers[key]) < count * dtypes[key]:
            raise ValueError("it ends within its numbers; is the file complete?")
    return state


def _read_safetensors(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    """The length of a JSON head, the head, and the numbers. The library sorts tensors by type and name."""
    contents = path.read_bytes()
    start = 8 + int.from_bytes(contents[:8], "little")
    head = json.loads(contents[8:start])
    head.pop("__metadata__", None)
    state = {}
    for name, entry in sorted(head.items(), key=lambda item: _place(item[0])):
        first, last = entry["data_offsets"]
        part = contents[start + first : start + last]
        storage = _Storage(SAFETENSORS[entry["dtype"]], functools.partial(bytes, part))
        shape = tuple(entry["shape"])
        strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
        state[name] = _tensor(storage, 0, shape, strides)
    return state


def _place(name: str) -> list[tuple[bool, int, str]]:
    """A sort key of a tensor's name that puts the layers of each kind in the order in which they run."""
    for pattern, replacement in ORDER:
        name = re.sub(pattern, replacement, name)
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.findall(r"\d+|[^\d.]+", name)]


def _state_of(found: Any) -> dict[str, Any]:
    """The dictionary of tensors in what a file holds."""
    for _ in range(3):
        if not isinstance(found, dict):
            break
        if any(map(callable, found.values())):
            return found
        found = next(
            (found[key] for key in ("state_dict", "model_state_dict", "model", "module") if key in found), None
        )
    raise ValueError("it holds no tensors by name: save the model's state_dict()")


def _single(array: np.ndarray) -> np.ndarray:
    """In float32 where it is in half precision."""
    if array.dtype == BFLOAT16:
        return (array.view("<u2").astype("<u4") << 16).view("<f4")
    return array.astype(np.float32) if array.dtype == np.float16 else array
