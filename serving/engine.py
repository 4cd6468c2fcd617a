"""An exported model, ready to segment pictures: onnxruntime on one chosen provider.

Shapes: N pictures of one size, H and W their height and width in pixels.
"""

import contextlib
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import onnxruntime

from serving.artifact import Artifact
from serving.windows import segment_by_windows

Provider = Literal["auto", "cpu", "cuda"]
T = TypeVar("T")
R = TypeVar("R")
Run = Callable[[onnxruntime.InferenceSession, np.ndarray], list[np.ndarray]]
"""From a session and pictures (N,H,W,3) to the wanted outputs."""

MAX_BATCH_PIXELS = 2**22
"""A batch of several pictures holds no more pixels than this: beyond it memory grows and speed does not."""

MIN_PIXELS_PER_THREAD = 2**15
"""Pixels of a picture from which on a CPU runs the pictures of a batch side by side, a thread each."""

CUDA_OPTIONS = {
    # The exhaustive search is hardly faster, and the default up to 70 times as slow (benchmarks/results/gpu.md).
    "cudnn_conv_algo_search": "HEURISTIC",
    # In powers of two it would keep more memory than the largest picture ever needed.
    "arena_extend_strategy": "kSameAsRequested",
}


GPU_SHAPES = 8
"""Batches of so many shapes stay prepared on a GPU unless told otherwise: 1, 2, 4 and 8 pictures of two sizes."""


class Engine:
    """Segments batches of equally sized pictures.

    Args:
        artifact: the model, from `open_artifact`.
        provider: "cuda" or "cpu"; "auto" takes CUDA where it works and the CPU elsewhere.
        threads: CPU threads for one prediction; as many as this process may use when None.
        gpu_shapes: batches of so many shapes, those that came last, stay prepared on a GPU, each with memory of its
            own there.

    Attributes:
        provider: "cuda" or "cpu": where predictions really run.
        threads: see above.

    Raises:
        ValueError: CUDA was asked for and cannot be used: it never falls back in silence. Or the graph cannot be
            opened, or does not take pictures.
    """

    def __init__(
        self,
        artifact: Artifact,
        provider: Provider = "auto",
        threads: int | None = None,
        gpu_shapes: int = GPU_SHAPES,
    ):
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        self.artifact = artifact
        self.threads = threads or usable_cpus()
        self.outputs = tuple(tensor.name for tensor in artifact.info.outputs)
        inputs = artifact.info.inputs
        if [(tensor.datatype, tensor.shape) for tensor in inputs] != [("UINT8", (-1, -1, -1, 3))]:
            found = ", ".join(f"{tensor.name}: {tensor.datatype} {list(tensor.shape)}" for tensor in inputs)
            raise ValueError(f"{artifact.folder} takes {found}; a model must have one input, UINT8 (N,H,W,3)")
        self.input = inputs[0].name
        session = self._cuda_session(quiet=provider == "auto") if provider in ("auto", "cuda") else None
        if session is None and provider == "cuda":
            raise ValueError(
                "CUDA was asked for and cannot be used (onnxruntime says why above): "
                "install the CUDA and cuDNN it names, or choose --provider cpu"
            )
        self.provider: Literal["cpu", "cuda"] = "cuda" if session else "cpu"
        self._session = session or self._cpu_session(self.threads)
        # By the shape of the batch; the first has had none yet. The one whose batch was longest ago comes first.
        self._gpu_sessions: OrderedDict[tuple[int, ...], onnxruntime.InferenceSession] = OrderedDict()
        self._gpu_sessions[()] = self._session
        self._gpu_shapes = gpu_shapes
        self._preparing = threading.Lock()
        one_thread = self.provider == "cuda" or self.threads == 1
        self._one_thread_session = self._session if one_thread else self._cpu_session(1)
        self._helpers = ThreadPoolExecutor(max(1, self.threads - 1), "segment")  # starts none before it is used
        # What the largest picture so far took would be kept for ever, gigabytes for a telephone's.
        self._shrink = onnxruntime.RunOptions()
        arenas = "cpu:0;gpu:0" if self.provider == "cuda" else "cpu:0"
        self._shrink.add_run_config_entry("memory.enable_memory_arena_shrinkage", arenas)

    def predict(self, images_NHWC: np.ndarray, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Segments pictures of one size; may be called from several threads at once.

        Args:
            images_NHWC: uint8 (N,H,W,3), RGB, 0..255, any N, H, W of at least 1.
            outputs: which are wanted, all when None: what nobody wants need not leave the GPU.

        Returns:
            By output name: `"labels"` uint8 (N,H,W), the class of each pixel; `"confidence"` float32 (N,H,W),
            its probability, 0..1; and what else the artifact lists.

        Raises:
            ValueError: another type or shape.
        """
        shape = images_NHWC.shape
        if images_NHWC.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise ValueError(f"expected uint8 pictures of shape (N,H,W,3), got {images_NHWC.dtype} {shape}")
        wanted = self.outputs if outputs is None else outputs
        options = self._shrink if math.prod(shape[:3]) > MAX_BATCH_PIXELS else None

        def run(session: onnxruntime.InferenceSession, images_NHWC: np.ndarray) -> list[np.ndarray]:
            return session.run(wanted, {self.input: images_NHWC}, options)

        results = self._on_gpu(run, images_NHWC) if self.provider == "cuda" else self._on_cpu(run, images_NHWC)
        return dict(zip(wanted, results, strict=True))

    def predict_large(
        self, image_HW3: np.ndarray, window: tuple[int, int], stride: float = 2 / 3, batch_size: int = 4
    ) -> dict[str, np.ndarray]:
        """Segments a picture of any size, window by window (`serving.windows.segment_by_windows`).

        A gate, which judges whole pictures, has no part in it.

        Args:
            image_HW3: uint8 (H,W,3), RGB, 0..255.
            window: height and width, pixels: about those of the training crops, or larger.
            stride: step from one window to the next, as a share of the window.
            batch_size: windows segmented at once.

        Returns:
            `"labels"` uint8 (H,W) and `"confidence"` float32 (H,W), 0..1.

        Raises:
            ValueError: the graph gives no logits, or an impossible window or stride.
        """
        if "logits" not in self.outputs:
            raise ValueError(
                f"{self.artifact.folder} gives no logits, from which large pictures are put together: export it with "
                "python -m export.run --logits"
            )
        labels_HW, confidence_HW = segment_by_windows(
            lambda windows_NhwC: self.predict(windows_NhwC, ("logits",))["logits"],
            image_HW3,
            len(self.artifact.info.classes),
            window,
            stride,
            batch_size,
        )
        return {"labels": labels_HW, "confidence": confidence_HW}

    def _on_cpu(self, run: Run, images_NHWC: np.ndarray) -> list[np.ndarray]:
        """Several pictures are done sooner side by side, a thread each from end to end, than together, where the
        threads wait for each other at every layer. Those that are fewer than the threads are done together."""
        count, height, width, _ = images_NHWC.shape
        apart = count - count % self.threads
        if count == 1 or height * width < MIN_PIXELS_PER_THREAD:
            apart = 0
        singles = [images_NHWC[index : index + 1] for index in range(apart)]
        results = self._side_by_side(lambda image_1HWC: run(self._one_thread_session, image_1HWC), singles)
        if apart < count:
            results.append(run(self._session, images_NHWC[apart:]))
        return results[0] if len(results) == 1 else [np.concatenate(parts) for parts in zip(*results, strict=True)]

    def _on_gpu(self, run: Run, images_NHWC: np.ndarray) -> list[np.ndarray]:
        """Runs the batch in the session of its shape.

        A session knows how to convolve the shape that it had last; for any other, also one that came before, it makes
        cuDNN's plans anew, which takes up to a thousand times as long as to run them (benchmarks/results/gpu.md).
        Hence a session for each shape, and `gpu_batch` lest there be one for every number of pictures.
        """
        count, *size = images_NHWC.shape
        more = gpu_batch(count) - count
        if more:
            images_NHWC = np.concatenate([images_NHWC, np.zeros((more, *size), np.uint8)])
        outputs = run(self._gpu_session(images_NHWC.shape), images_NHWC)
        return [output[:count] for output in outputs] if more else outputs

    def _gpu_session(self, shape: tuple[int, ...]) -> onnxruntime.InferenceSession:
        with self._preparing:
            sessions = self._gpu_sessions
            if shape not in sessions:
                unused = sessions.pop((), None)
                if unused is None and len(sessions) < self._gpu_shapes:
                    unused = self._cuda_session(quiet=True)
                # One that has to be prepared anyway; also where the GPU has no memory for another.
                sessions[shape] = unused or sessions.popitem(last=False)[1]
            sessions.move_to_end(shape)
            return sessions[shape]

    def _side_by_side(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """`function` of each, on the caller's thread and those helpers that other callers leave; or what it raises."""
        results: dict[int, R] = {}
        errors: list[BaseException] = []
        numbered = iter(enumerate(items))  # each is taken once, by whichever thread is free

        def work() -> None:
            try:
                for index, item in numbered:
                    results[index] = function(item)
            except BaseException as error:
                errors.append(error)
                for _ in numbered:  # nobody takes another
                    pass

        helpers = [self._helpers.submit(work) for _ in range(min(self.threads, len(items)) - 1)]
        work()
        wait([helper for helper in helpers if not helper.cancel()])
        if errors:
            first = errors[0]
            errors.clear()
            try:
                raise first
            finally:
                del first  # its traceback has this frame: they would hold each other, and the pictures
        return [results[index] for index in range(len(items))]

    def _cpu_session(self, threads: int) -> onnxruntime.InferenceSession:
        try:
            return self._new_session(["CPUExecutionProvider"], threads)
        except Exception as error:  # as below
            raise ValueError(f"{self.artifact.graph} cannot be opened: {error}") from error

    def _cuda_session(self, quiet: bool) -> onnxruntime.InferenceSession | None:
        # get_available_providers() only tells what was compiled in; whether CUDA works shows in the session
        # alone.
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            return None
        if quiet:
            onnxruntime.set_default_logger_severity(4)
        try:
            # Finds the CUDA libraries of pip's nvidia packages; prints what it misses, which is no result of
            # ours.
            with contextlib.redirect_stdout(None):
                onnxruntime.preload_dlls()
            session = self._new_session([("CUDAExecutionProvider", CUDA_OPTIONS), "CPUExecutionProvider"], self.threads)
        except Exception:  # a driver without a device raises; what onnxruntime raises has no public base class
            return None
        finally:
            if quiet:
                onnxruntime.set_default_logger_severity(2)
        if session.get_providers()[0] != "CUDAExecutionProvider":
            return None
        session.disable_fallback()  # else a failed run would quietly go on with a new CPU session
        return session

    def _new_session(self, providers: list, threads: int) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # that sizes are computed on the CPU, beside a GPU, is as it should be
        # Threads that spin while they wait for work take the CPU from those that decode and encode pictures.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # One plan per size seen is kept for ever otherwise: memory would grow with every new picture size.
        options.enable_mem_pattern = False
        # The artifact's checksum is of model.onnx alone. Weights that it names in other files would not be those
        # that were proven right, or no weights at all but any file of this machine: none is found here.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
        return onnxruntime.InferenceSession(self.artifact.graph, sess_options=options, providers=providers)


def batch_limit(size: Sequence[int], batch_size: int) -> int:
    """How many pictures of `size` (H,W) to predict together: `batch_size`, fewer of large ones, at least 1."""
    return max(1, min(batch_size, MAX_BATCH_PIXELS // math.prod(size)))


def gpu_batch(count: int) -> int:
    """How many pictures a GPU is given for `count`, the others black: the next power of two."""
    return 1 << (count - 1).bit_length()


def has_gpu() -> bool:
    """Whether this machine, or container, has an NVIDIA GPU, be it usable or not."""
    return Path("/dev/nvidiactl").exists()


def usable_cpus() -> int:
    """CPUs this process may keep busy, fewer than the machine has under `taskset` or in a container."""
    affinity = getattr(os, "sched_getaffinity", None)
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    return int(max(1, min(cpus, cgroup_cpus())))


def cgroup_cpus(cgroup: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """The CPU time that the control groups of this process allow, in CPUs; infinite where they set no limit.

    A container is given its share as a quota of time, which no count of CPUs shows; threads beyond it are stopped
    until the next period.

    Args:
        cgroup: which groups this process is in.
        root: where they are mounted. Version 2, and the `cpu` controller of version 1.
    """
    limits = [float("inf")]
    with contextlib.suppress(OSError):
        for line in cgroup.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            top = root / "cpu" if controllers else root
            # Inside a container the path may be that of the host, and the limit at the top.
            own = top / path.lstrip("/")
            limits += [_quota(group) for group in (own, *own.parents) if group.is_relative_to(top)]
    return min(limits)


def _quota(group: Path) -> float:
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        # No such file, "max" for no limit, or -1 for the same.
        with contextlib.suppress(OSError, ValueError):
            quota, period = map(int, " ".join((group / file).read_text() for file in files).split())
            if quota > 0:
                return quota / period
    return float("inf")
