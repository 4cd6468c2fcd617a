"""What clients may ask of the server."""

from dataclasses import dataclass

import numpy as np

from serving.common.images import check_pixels

MAX_SHORT_BODY = 2**16
"""Bytes of a request that is none for inference, of which a field or two are read: on the event loop."""


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """What a client may ask for."""

    max_body: int = 2**26
    """The largest body, compressed and not, bytes."""
    max_bodies: int = 2**28
    """The most bytes of all bodies that are being read or decoded, and of all answers that are being sent."""
    max_pixels: int = 2**24
    """The most pixels of an image, or of a tensor's images together; `check_pixels` says how thin ones count."""
    timeout: float = 30.0
    """Seconds that a request may wait to be decoded and for its batch."""
    body_timeout: float = 30.0
    """Seconds that its body may take to arrive."""

    @property
    def max_elements(self) -> int:
        """The most numbers in a tensor: three for each pixel."""
        return 3 * self.max_pixels

    def check_images(self, images_NHWC: np.ndarray, max_batch_size: int) -> None:
        """Raises ValueError for more images than the model takes at a time, TooManyPixels for more pixels."""
        count, height, width, _ = images_NHWC.shape
        if count > max_batch_size:
            raise ValueError(f"{count} images in a tensor, at most {max_batch_size} are taken")
        check_pixels(height, width, self.max_pixels, count)
