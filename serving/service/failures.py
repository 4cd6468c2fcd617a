"""Why a request is not answered, and what its client gets instead, over HTTP and over gRPC."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from serving.common.images import TooManyPixels
from serving.model.batcher import Closed, QueueFull
from serving.model.repository import UnknownModel


class BadRequest(Exception):
    """The client sent what cannot be answered."""


class TooLarge(ValueError):
    """The client sent more than the limits allow."""


class Unauthorized(Exception):
    """The request does not carry the server's token."""


class Forbidden(Exception):
    """The server was started without what is asked for."""


class Loading(Exception):
    """The models are not there yet."""


class DeadlineExceeded(Exception):
    """The request's time was over before its batch ran."""


class ClientGone(Exception):
    """Nobody waits for the answer."""


class BackendError(Exception):
    """The model failed on a request that was right."""


class Failure(NamedTuple):
    """What a request that failed is answered."""

    status: int
    """HTTP's."""
    code: str
    """gRPC's."""
    reason: str
    """Triton's, in the metrics."""


FAILURES: dict[type[BaseException], Failure] = {
    BadRequest: Failure(400, "INVALID_ARGUMENT", "OTHER"),
    TooLarge: Failure(413, "INVALID_ARGUMENT", "OTHER"),
    Unauthorized: Failure(401, "UNAUTHENTICATED", "OTHER"),
    Forbidden: Failure(403, "PERMISSION_DENIED", "OTHER"),
    UnknownModel: Failure(404, "NOT_FOUND", "OTHER"),
    Loading: Failure(503, "UNAVAILABLE", "REJECTED"),
    QueueFull: Failure(503, "UNAVAILABLE", "REJECTED"),
    Closed: Failure(503, "UNAVAILABLE", "REJECTED"),
    DeadlineExceeded: Failure(503, "DEADLINE_EXCEEDED", "REJECTED"),
    ClientGone: Failure(499, "CANCELLED", "CANCELED"),  # nobody reads it; nginx' number, for the log
    asyncio.CancelledError: Failure(499, "CANCELLED", "CANCELED"),
    BackendError: Failure(500, "INTERNAL", "BACKEND"),
}
"""What becomes of a request that is not answered. What is not here is nobody's mistake but ours."""


def client_message(error: BaseException) -> str:
    """What a client is answered for one of `FAILURES`."""
    return str(error) or "the server is stopping"


@contextlib.contextmanager
def value_errors_as_failures() -> Iterator[None]:
    """Whatever reads a request raises ValueErrors: they become BadRequest, or TooLarge."""
    try:
        yield
    except TooLarge:
        raise
    except ValueError as error:
        raise (TooLarge if isinstance(error, TooManyPixels) else BadRequest)(str(error)) from error
