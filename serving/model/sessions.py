"""onnxruntime's sessions: how they are opened, and which of them a batch on a GPU gets."""

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from onnxruntime import (
    InferenceSession,
    SessionOptions,
    get_available_providers,
    preload_dlls,
    set_default_logger_severity,
)

R = TypeVar("R")

CUDA_OPTIONS = {
    # The exhaustive search is hardly faster, and the default up to 70 times as slow (benchmarks/results/gpu.md).
    "cudnn_conv_algo_search": "HEURISTIC",
    # In powers of two it would keep more memory than the largest image ever needed.
    "arena_extend_strategy": "kSameAsRequested",
}


def new_session(graph: Path | bytes, providers: list, threads: int) -> InferenceSession:
    """Opens an ONNX file, or what was read of it, on the first of the providers that works."""
    return InferenceSession(graph, sess_options=session_options(threads), providers=providers)


def session_options(threads: int) -> SessionOptions:
    """How every session runs, wherever."""
    options = SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised; the caller knows the image, and reports it
    # Threads that spin while they wait for work take the CPU from those that decode and encode images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # One plan per size seen is kept for ever otherwise: memory would grow with every new image size.
    options.enable_mem_pattern = False
    # The artifact's checksum covers model.onnx only. Weights that it names in other files would not be those
    # that were proven right, or no weights at all but any file of this machine: none is found here.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    return options


def gpu_session(graph: bytes) -> InferenceSession:
    """A session on the GPU; its `get_providers()` say whether it really is there."""
    providers = [("CUDAExecutionProvider", CUDA_OPTIONS), "CPUExecutionProvider"]
    session = new_session(graph, providers, threads=1)  # the CPU computes nothing but sizes
    session.disable_fallback()  # else a failed run would quietly go on with a new CPU session
    return session


def first_gpu_session(graph: bytes, quiet: bool) -> InferenceSession | None:
    """A session on the GPU; None where it cannot be used, which onnxruntime explains on stderr unless `quiet`."""
    # get_available_providers() only lists what was compiled in; a session shows whether CUDA works.
    if "CUDAExecutionProvider" not in get_available_providers():
        return None
    if quiet:
        set_default_logger_severity(4)
    try:
        # Finds the CUDA libraries of pip's nvidia packages; prints what it misses, which is no result of ours.
        with contextlib.redirect_stdout(None):
            preload_dlls()
        session = gpu_session(graph)
    except Exception:  # a driver without a device raises; what onnxruntime raises has no public base class
        return None
    finally:
        if quiet:
            set_default_logger_severity(2)
    return session if session.get_providers()[0] == "CUDAExecutionProvider" else None


class GpuSessions:
    """A session for each shape of batch, on a GPU.

    A session knows how to convolve the shape that it had last. For any other, also one that it had before, it makes
    cuDNN's plans again, which takes hundreds of times as long as to run them (benchmarks/results/gpu.md).

    Args:
        graph: what the ONNX file holds: it may have been replaced or removed when another session is opened.
        first: a session of it that has run nothing yet.
        most: sessions that are kept, those whose batches came last.
    """

    def __init__(self, graph: bytes, first: InferenceSession, most: int):
        self._graph = graph
        self._unused = [first]
        self._most = most
        self._by_shape: OrderedDict[tuple[int, ...], InferenceSession] = OrderedDict()
        self._lock = threading.Lock()

    def run(self, shape: tuple[int, ...], function: Callable[[InferenceSession], R]) -> R:
        """`function` of the session of this shape; may be called from several threads at once.

        Where the GPU has no memory left, the other sessions give theirs and it is tried once more.
        """
        try:
            return function(self._session(shape))
        except Exception as error:  # as above
            if "memory" not in str(error) or not self._drop_others(shape):
                raise
        return function(self._session(shape))

    def _session(self, shape: tuple[int, ...]) -> InferenceSession:
        with self._lock:
            if shape not in self._by_shape:
                if len(self._by_shape) == self._most:
                    self._by_shape.popitem(last=False)
                self._by_shape[shape] = self._unused.pop() if self._unused else gpu_session(self._graph)
            self._by_shape.move_to_end(shape)
            return self._by_shape[shape]

    def _drop_others(self, shape: tuple[int, ...]) -> bool:
        """Whether there were any."""
        with self._lock:
            others = self._by_shape.keys() - {shape}
            for other in others:
                del self._by_shape[other]
            return bool(others)
