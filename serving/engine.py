"""An exported model, ready to segment pictures: one onnxruntime session on one chosen provider.

Shapes: N pictures of one size, H and W their height and width in pixels.
"""

import contextlib
import os
from typing import Literal

import numpy as np
import onnxruntime

from serving.artifact import Artifact
from serving.windows import segment_by_windows

Provider = Literal["auto", "cpu", "cuda"]

CUDA_OPTIONS = {
    # Pictures come in many sizes. The exhaustive search would stall at the first picture of every size, and
    # an arena that grows in powers of two would keep more memory than the largest picture ever needed.
    "cudnn_conv_algo_search": "HEURISTIC",
    "arena_extend_strategy": "kSameAsRequested",
}


class Engine:
    """Segments batches of equally sized pictures.

    Args:
        artifact: the model, from `open_artifact`.
        provider: "cuda" or "cpu"; "auto" takes CUDA where it works and the CPU elsewhere.
        threads: CPU threads for one prediction; as many as this process may use when None.

    Attributes:
        provider: "cuda" or "cpu": where predictions really run.
        threads: see above.

    Raises:
        ValueError: CUDA was asked for and cannot be used. It never falls back in silence.
    """

    def __init__(self, artifact: Artifact, provider: Provider = "auto", threads: int | None = None):
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        self.artifact = artifact
        self.threads = threads or usable_cpus()
        self.outputs = tuple(tensor.name for tensor in artifact.info.outputs)
        session = self._cuda_session(quiet=provider == "auto") if provider in ("auto", "cuda") else None
        if session is None and provider == "cuda":
            raise ValueError(
                "CUDA was asked for and cannot be used (onnxruntime says why above): "
                "install the CUDA and cuDNN it names, or choose --provider cpu"
            )
        self.provider: Literal["cpu", "cuda"] = "cuda" if session else "cpu"
        self._session = session or self._new_session(["CPUExecutionProvider"])

    def predict(self, images_NHWC: np.ndarray) -> dict[str, np.ndarray]:
        """Segments pictures of one size.

        Args:
            images_NHWC: uint8 (N,H,W,3), RGB, 0..255, any N, H, W of at least 1.

        Returns:
            By output name: `"labels"` uint8 (N,H,W), the class of each pixel; `"confidence"` float32 (N,H,W),
            its probability, 0..1; and what else the artifact lists.

        Raises:
            ValueError: another type or shape.
        """
        shape = images_NHWC.shape
        if images_NHWC.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise ValueError(f"expected uint8 pictures of shape (N,H,W,3), got {images_NHWC.dtype} {shape}")
        results = self._session.run(self.outputs, {"image": images_NHWC})
        return dict(zip(self.outputs, results, strict=True))

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
            lambda windows_NhwC: self.predict(windows_NhwC)["logits"],
            image_HW3,
            len(self.artifact.info.classes),
            window,
            stride,
            batch_size,
        )
        return {"labels": labels_HW, "confidence": confidence_HW}

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
            session = self._new_session([("CUDAExecutionProvider", CUDA_OPTIONS), "CPUExecutionProvider"])
        except Exception:  # a driver without a device raises; what onnxruntime raises has no public base class
            return None
        finally:
            if quiet:
                onnxruntime.set_default_logger_severity(2)
        if session.get_providers()[0] != "CUDAExecutionProvider":
            return None
        session.disable_fallback()  # else a failed run would quietly go on with a new CPU session
        return session

    def _new_session(self, providers: list) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        # One plan per size seen is kept for ever otherwise: memory would grow with every new picture size.
        options.enable_mem_pattern = False
        return onnxruntime.InferenceSession(self.artifact.graph, sess_options=options, providers=providers)


def usable_cpus() -> int:
    """CPUs this process may run on, fewer than the machine has inside a container or under `taskset`."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
