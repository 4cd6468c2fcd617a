"""The threads that read requests and write answers, and waiting for what they or a model do."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from serving.model.engine import usable_cpus
from serving.service.failures import ClientGone, DeadlineExceeded, value_errors_as_failures

R = TypeVar("R")

Disconnected = Callable[[], Coroutine[Any, Any, None]]
"""Returns once the client is gone."""


class Pool:
    """As many threads as this process may use."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(usable_cpus(), "images")

    def close(self) -> None:
        self._executor.shutdown()

    async def run(self, function: Callable[..., R], *args: Any) -> R:
        """What `function` returns; it reads a request or writes an answer, and its ValueErrors go to the client."""
        with value_errors_as_failures(), self.submitted(function, *args) as work:
            return await asyncio.wrap_future(work)

    @contextlib.contextmanager
    def submitted(self, function: Callable[..., R], *args: Any) -> "Iterator[Future[R]]":
        """`function` in the pool. What has not begun when the block ends is let go, with its arguments.

        The pool's queue keeps cancelled work until a thread is free, and with it would keep bodies that count no
        longer.
        """
        work = [(function, args)]

        def run() -> R:
            function, args = work.pop()
            return function(*args)

        try:
            yield self._executor.submit(run)
        finally:
            work.clear()


async def wait(future: "Future[R]", until: float, disconnected: Disconnected | None, *, finish: bool) -> R:
    """What the future brings, unless the client goes or the time is over first: then it is cancelled.

    Args:
        until: by `time.perf_counter`, seconds.
        disconnected: None where a client that goes cancels this call.
        finish: what runs already when the time is over is waited for, late as it may be. Otherwise it is left to
            itself: a thread cannot be stopped.

    Raises:
        DeadlineExceeded, ClientGone, or what the future raises.
    """
    done: asyncio.Future[R] = asyncio.wrap_future(future)
    ends: set[asyncio.Future[Any]] = {done} | ({asyncio.ensure_future(disconnected())} if disconnected else set())
    try:
        ended, _ = await asyncio.wait(
            ends, timeout=max(until - time.perf_counter(), 0), return_when=asyncio.FIRST_COMPLETED
        )
        if not ended:
            if future.cancel() or not finish:
                raise DeadlineExceeded("the request's time was over before its turn came")
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise ClientGone
        return done.result()
    finally:
        for end in ends:
            end.cancel()
        # An error holds this frame by its traceback: a cycle, which would keep the request in memory.
        del future, done, ends, end
