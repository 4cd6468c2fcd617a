"""A request: what the log says of it, what it asks of a model, and who reads it and writes its answer."""

import logging
import time
import uuid
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from serving.model.model import Answer, Model

log = logging.getLogger("serving.requests")


class RequestRecord:
    """A request from its arrival to its line in the log.

    Args:
        client: its address.
        id: what the client calls the request in its header; empty where it does not.

    Attributes:
        id: of the log and the answer: the client's, tidied, or a new one.
        model: which one it asked for, once that is known.
        arrived: when, by `time.perf_counter_ns`.
    """

    def __init__(self, method: str, path: str, client: str, id: str):
        self._method, self._path, self._client = method, path, client
        self._header_id = _safe_id(id)
        self.id = self._header_id or uuid.uuid4().hex
        self.model: Model | None = None
        self.arrived = time.perf_counter_ns()

    def take_body_id(self, id: str) -> None:
        """The body names the request too, which counts where no header does."""
        self.id = self._header_id or _safe_id(id) or self.id

    def internal_error(self) -> str:
        """What the client is answered where nothing better can be said."""
        return f"internal error; the server's log says more about request {self.id}"

    def write(self, status: int | str, sent: int) -> None:
        """Writes the line, with the protocol's status and the bytes of the answer."""
        model = self.model
        log.info(
            "request",
            extra={
                "id": self.id,
                "client": self._client,
                "method": self._method,
                "path": self._path,
                "status": status,
                "ms": round((time.perf_counter_ns() - self.arrived) / 1e6, 2),
                "bytes": sent,
                **({"model": f"{model.info.name}/{model.info.version}"} if model else {}),
            },
        )


@dataclass(frozen=True, kw_only=True)
class DecodedRequest:
    """What a request asks of a model. A codec whose answers depend on more has a subclass with that."""

    images_NHWC: np.ndarray
    """Images of one size, uint8 (N,H,W,3), 0..255."""
    outputs: tuple[str, ...]
    """Names of the model's outputs that are wanted."""
    timeout: float | None = None
    """Seconds that the client wants to wait at most."""
    id: str | None = None
    """What the body calls the request."""


class Codec(Protocol):
    """Reads one request and writes its answer, in threads of the pool."""

    @property
    def timeout(self) -> float:
        """Seconds that the client wants to wait at most, as far as that is known before the body is there."""

    def decode(self, model: Model, body: Any) -> Any:
        """The body, in the form that the protocol gives it, as a DecodedRequest, or a subclass that `encode` knows.

        Raises:
            ValueError: it says to the client what is wrong.
        """

    def encode(self, model: Model, request: Any, answer: Answer) -> Any:
        """The answer, in the form that the protocol wants. Raises ValueError as `decode` does."""


def _safe_id(text: str) -> str:
    """What may stand in a header and in a line of a log."""
    return "".join(character for character in text[:1024] if "!" <= character <= "~")[:128]
