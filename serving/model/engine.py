"""An exported model, ready to segment images: onnxruntime on one chosen provider.

Shapes: N images of one size, H and W their height and width in pixels.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import onnxruntime

from serving.common.artifact import FEATURES, Artifact
from serving.common.images import STRIDE, padded_pixels
from serving.common.windows import segment_by_windows
from serving.model.sessions import GpuSessions, first_gpu_session, new_session

Provider = Literal["auto", "cpu", "cuda"]
T = TypeVar("T")
R = TypeVar("R")
Run = Callable[[onnxruntime.InferenceSession, np.ndarray], list[np.ndarray]]
"""From a session and images (N,H,W,3) to the wanted outputs."""

MAX_BATCH_PIXELS = 2**22
"""A batch of several images holds no more pixels than this, padded: beyond it memory grows and speed does not."""

MIN_PIXELS_PER_THREAD = 2**15
"""Pixels of an image from which on a CPU runs the images of a batch side by side, a thread each."""

GPU_SHAPES = 8
"""Batches of so many shapes stay prepared on a GPU by default: 1, 2, 4 and 8 images of two sizes."""


class Engine:
    """Segments batches of equally sized images.

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
            opened, or does not take images.
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
        self.provider: Literal["cpu", "cuda"] = "cpu"
        if provider in ("auto", "cuda"):
            graph = artifact.graph.read_bytes()
            session = first_gpu_session(graph, quiet=provider == "auto")
            if session is not None:
                self.provider = "cuda"
                self._require_outputs(session)
                self._gpu_sessions = GpuSessions(graph, session, gpu_shapes)
            elif provider == "cuda":
                raise ValueError(
                    "CUDA was asked for and cannot be used (onnxruntime says why above): "
                    "install the CUDA and cuDNN it names, or choose --provider cpu"
                )
        if self.provider == "cpu":
            self._session = self._cpu_session(self.threads)
            self._one_thread_session = self._session if self.threads == 1 else self._cpu_session(1)
            self._require_outputs(self._session)
        self._helpers = ThreadPoolExecutor(max(1, self.threads - 1), "segment")  # starts none before it is used
        # What the largest image so far took would be kept for ever, gigabytes for a telephone's.
        self._shrink = onnxruntime.RunOptions()
        arenas = "cpu:0;gpu:0" if self.provider == "cuda" else "cpu:0"
        self._shrink.add_run_config_entry("memory.enable_memory_arena_shrinkage", arenas)

    def predict(self, images_NHWC: np.ndarray, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Segments images of one size; may be called from several threads at once.

        Args:
            images_NHWC: uint8 (N,H,W,3), RGB, 0..255, any N, H, W of at least 1.
            outputs: which are wanted, all maps when None: what nobody wants need not leave the GPU.

        Returns:
            By output name: `"labels"` uint8 (N,H,W), the class of each pixel; `"confidence"` float32 (N,H,W),
            its probability, 0..1; and what else the artifact lists. `"features"`, where it has them and they are
            wanted: float32 (N,D).

        Raises:
            ValueError: another type or shape.
        """
        shape = images_NHWC.shape
        if images_NHWC.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise ValueError(f"expected uint8 images of shape (N,H,W,3), got {images_NHWC.dtype} {shape}")
        wanted = self.outputs if outputs is None else outputs
        options = self._shrink if shape[0] * padded_pixels(*shape[1:3]) > MAX_BATCH_PIXELS else None

        def run(session: onnxruntime.InferenceSession, images_NHWC: np.ndarray) -> list[np.ndarray]:
            return session.run(wanted, {self.input: images_NHWC}, options)

        results = self._on_gpu(run, images_NHWC) if self.provider == "cuda" else self._on_cpu(run, images_NHWC)
        return dict(zip(wanted, results, strict=True))

    def give_back_memory(self) -> None:
        """Lets go of what predictions on a CPU have left allocated; on a GPU it is kept for the next ones."""
        if self.provider == "cpu":
            for session in {self._session, self._one_thread_session}:
                session.run(None, {self.input: np.zeros((1, STRIDE, STRIDE, 3), np.uint8)}, self._shrink)

    def predict_large(
        self,
        image_HW3: np.ndarray,
        window: tuple[int, int],
        stride: float = 2 / 3,
        batch_size: int = 4,
        features: bool = False,
    ) -> dict[str, np.ndarray]:
        """Segments an image of any size, window by window (`serving.common.windows.segment_by_windows`).

        A gate, which judges whole images, has no part in it.

        Args:
            image_HW3: uint8 (H,W,3), RGB, 0..255.
            window: height and width, pixels: about those of the training crops, or larger.
            stride: step from one window to the next, as a share of the window.
            batch_size: windows segmented at once.
            features: give them too, where the artifact has them.

        Returns:
            `"labels"` uint8 (H,W) and `"confidence"` float32 (H,W), 0..1; `"features"` float32 (D,), their mean over
            the windows.

        Raises:
            ValueError: the graph gives no logits, or an impossible window or stride.
        """
        self.artifact.require_logits()
        found: list[np.ndarray] = []

        def logits_of(windows_NhwC: np.ndarray) -> np.ndarray:
            outputs = self.predict(windows_NhwC, ("logits", FEATURES) if features else ("logits",))
            found.extend(outputs.get(FEATURES, ()))
            return outputs["logits"]

        labels_HW, confidence_HW = segment_by_windows(
            logits_of,
            image_HW3,
            len(self.artifact.info.classes),
            window,
            stride,
            batch_size,
        )
        answer = {"labels": labels_HW, "confidence": confidence_HW}
        return answer | ({FEATURES: np.mean(found, axis=0)} if features else {})

    def _require_outputs(self, session: onnxruntime.InferenceSession) -> None:
        """ValueError where model.json lists what the graph does not give."""
        given = [output.name for output in session.get_outputs()]
        if missing := [name for name in self.artifact.info.all_outputs if name not in given]:
            raise ValueError(
                f"{self.artifact.folder} lists the output {missing[0]}, and its graph gives {', '.join(given)}: export "
                "it again"
            )

    def _on_cpu(self, run: Run, images_NHWC: np.ndarray) -> list[np.ndarray]:
        """Several images are done sooner side by side, a thread each from end to end, than together, where the
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
        """Runs the batch in the session of its shape, with black images added up to what `gpu_batch` says: else there
        would be a session for every number of images."""
        count, height, width, _ = images_NHWC.shape
        more = gpu_batch((height, width), count) - count
        if more:
            images_NHWC = np.concatenate([images_NHWC, np.zeros((more, height, width, 3), np.uint8)])
        outputs = self._gpu_sessions.run(images_NHWC.shape, lambda session: run(session, images_NHWC))
        return [output[:count] for output in outputs] if more else outputs

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
                del first  # its traceback has this frame: they would hold each other, and the images
        return [results[index] for index in range(len(items))]

    def _cpu_session(self, threads: int) -> onnxruntime.InferenceSession:
        try:
            return new_session(self.artifact.graph, ["CPUExecutionProvider"], threads)
        except Exception as error:  # what onnxruntime raises has no public base class
            raise ValueError(f"{self.artifact.graph} cannot be opened: {error}") from error


def batch_limit(size: tuple[int, int], batch_size: int) -> int:
    """How many images of `size` (H,W) to predict together: `batch_size`, fewer of large ones, at least 1."""
    return max(1, min(batch_size, MAX_BATCH_PIXELS // padded_pixels(*size)))


def gpu_batch(size: tuple[int, int], count: int) -> int:
    """How many images of `size` (H,W) a GPU is given for `count`: the next power of two unless they are too large."""
    rounded = 1 << (count - 1).bit_length()
    return rounded if rounded * padded_pixels(*size) <= MAX_BATCH_PIXELS else count


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
