"""Files as PyTorch and safetensors write them, made without these libraries."""

import contextlib
import io
import json
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from unittest import mock

import numpy as np

from kerasseg.segmenters.torch_files import LEGACY_MAGIC

STORAGE = {"<f4": "FloatStorage", "<f2": "HalfStorage", "<i8": "LongStorage", "<f8": "DoubleStorage"}


class Storage:
    """A contiguous array of numbers, and its key in the file."""

    def __init__(self, numbers, key):
        self.numbers, self.key = numbers, key


class Tensor:
    def __init__(self, storage, shape, strides, offset=0):
        self.arguments = (storage, offset, shape, strides, False, OrderedDict())

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


@contextlib.contextmanager
def names_of_torch():
    """Modules with the names that a pickle of PyTorch refers to."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in STORAGE.values():
        setattr(torch, name, type(name, (), {"__module__": "torch", "__qualname__": name}))
    utils._rebuild_tensor_v2 = type("_rebuild_tensor_v2", (), {"__module__": "torch._utils"})
    torch._utils = utils
    with mock.patch.dict(sys.modules, {"torch": torch, "torch._utils": utils}):
        yield torch


def pickled(state, torch, legacy: bool) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, each):
            if not isinstance(each, Storage):
                return None
            kind = getattr(torch, STORAGE[each.numbers.dtype.str])
            return ("storage", kind, each.key, "cpu", each.numbers.size, *([None] if legacy else []))

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(state)
    return buffer.getvalue()


def as_tensors(arrays):
    """Tensors of arrays, each with a storage of its own; and the storages."""
    storages = [Storage(np.ascontiguousarray(array).ravel(), str(key)) for key, array in enumerate(arrays.values())]
    tensors = OrderedDict()
    for (name, array), storage in zip(arrays.items(), storages, strict=True):
        strides = tuple(int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim))
        tensors[name] = Tensor(storage, array.shape, strides)
    return tensors, storages


def write_zip(path, arrays, wrap=lambda state: state):
    tensors, storages = as_tensors(arrays)
    with names_of_torch() as torch, zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(wrap(tensors), torch, legacy=False))
        for storage in storages:
            archive.writestr(f"archive/data/{storage.key}", storage.numbers.tobytes())


def write_legacy(path, arrays):
    tensors, storages = as_tensors(arrays)
    with names_of_torch() as torch, path.open("wb") as file:
        file.write(LEGACY_MAGIC + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2))
        file.write(pickled(tensors, torch, legacy=True) + pickle.dumps([storage.key for storage in storages], 2))
        for storage in storages:
            file.write(struct.pack("<q", storage.numbers.size) + storage.numbers.tobytes())


def write_safetensors(path, arrays):
    kinds = {"<f4": "F32", "<f2": "F16", "<i8": "I64", "<f8": "F64"}
    head, numbers = {"__metadata__": {"format": "pt"}}, b""
    for name, array in sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])):  # as its library does
        first, numbers = len(numbers), numbers + array.tobytes()
        head[name] = {"dtype": kinds[array.dtype.str], "shape": array.shape, "data_offsets": [first, len(numbers)]}
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + numbers)
