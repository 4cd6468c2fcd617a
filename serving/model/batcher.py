"""Requests one by one in, batches to a function, answers one by one out.

    admit --> ticket --> submit --> queue of its key --> batch --> run, in a thread of its own --> future

Knows neither HTTP nor models: a key is whatever may not be mixed in a batch (an image's size), an item whatever
`run` takes. A request that nobody waits for any more is taken back by cancelling its future; a deadline is a
cancellation by the clock, and the caller's matter.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any, Self


class QueueFull(Exception):
    """As many requests as may wait are waiting."""


class Closed(Exception):
    """The batcher takes no more requests."""


class QueuedRequest:
    """A request that waits for its batch.

    Args:
        key: only requests of equal keys share a batch.
        item: for `run`.
        count: how much of a batch it fills.
        arrived: when, in the clock's seconds.
    """

    def __init__(self, key: Hashable, item: Any, count: int, arrived: float):
        self.key, self.item, self.count, self.arrived = key, item, count, arrived
        self.future: Future[Any] = Future()


class RequestQueue:
    """Which requests make the next batch, and when: no thread, no clock, no lock.

    A key's window opens when its first request arrives. A batch is due once it is full or its window has closed;
    of several the one whose first request has waited longest.

    Args:
        batch_size: by key, how much fits into a batch. A larger request is a batch of its own.
        max_delay: how long a window stays open, seconds.
    """

    def __init__(self, batch_size: Callable[[Any], int], max_delay: float):
        self._batch_size = batch_size
        self._max_delay = max_delay
        self._groups: dict[Hashable, deque[QueuedRequest]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def put(self, request: QueuedRequest) -> None:
        self._groups.setdefault(request.key, deque()).append(request)

    def discard(self, key: Hashable, future: Future[Any]) -> None:
        """Takes the request with this future out again; nothing happens where it is no longer there."""
        kept = deque(request for request in self._groups.pop(key, ()) if request.future is not future)
        if kept:
            self._groups[key] = kept

    def due_at(self) -> float | None:
        """When `take` will have a batch if nothing else arrives; None of an empty queue."""
        return min(map(self._due_at, self._groups.values()), default=None)

    def take(self, now: float) -> list[QueuedRequest]:
        """The batch that is due, without requests that were cancelled; empty where none is."""
        due = [group for group in self._groups.values() if self._due_at(group) <= now]
        if not due:
            return []
        group = min(due, key=lambda group: group[0].arrived)
        key, room = group[0].key, self._batch_size(group[0].key)
        batch: list[QueuedRequest] = []
        while group and (group[0].count <= room or not batch):
            request = group.popleft()
            if request.future.set_running_or_notify_cancel():
                batch.append(request)
                room -= request.count
        if not group:
            del self._groups[key]
        return batch

    def _due_at(self, group: deque[QueuedRequest]) -> float:
        full = sum(request.count for request in group) >= self._batch_size(group[0].key)
        return float("-inf") if full else group[0].arrived + self._max_delay


class Ticket:
    """A place in the queue, held while the item is being prepared; leaving the `with` block gives it back.

    Leaving it by an exception also takes back the item that another thread may have submitted by then, since nobody
    will have its future.
    """

    def __init__(self, batcher: "Batcher"):
        self._batcher = batcher
        self.held = True
        self.future: Future[Any] | None = None

    def submit(self, key: Hashable, item: Any, count: int = 1) -> Future[Any]:
        """Queues the item; the future brings what `run` returns for it, or raises what it raised.

        `future.cancel()` takes the item out of the queue, and fails once its batch runs.
        """
        return self._batcher._submit(self, key, item, count)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._batcher._give_back(self)
        if kind and self.future:
            self.future.cancel()


class Batcher:
    """Threads that take batches from a bounded queue, and sleep while there are none.

    Args:
        run: a batch of items to as many results. Where it raises, the items are tried one by one, so that one that
            cannot be computed does not fail the others.
        batch_size, max_delay: see `RequestQueue`.
        max_queue: how many requests may be waiting or being prepared.
        workers: batches that run side by side.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        run: Callable[[list[Any]], Sequence[Any]],
        batch_size: Callable[[Any], int],
        *,
        max_delay: float = 0.0,
        max_queue: int = 64,
        workers: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._run = run
        self._clock = clock
        self._max_queue = max_queue
        self._queue = RequestQueue(batch_size, max_delay)
        self._prepared = 0
        self._closing = False
        self._condition = threading.Condition()
        self._threads = [threading.Thread(target=self._work, name=f"batch-{n}", daemon=True) for n in range(workers)]
        for thread in self._threads:
            thread.start()

    @property
    def pending(self) -> int:
        """Requests that wait or are being prepared."""
        with self._condition:
            return self._prepared + len(self._queue)

    @property
    def full(self) -> bool:
        return self.pending >= self._max_queue

    def admit(self) -> Ticket:
        """A place for one request.

        Raises:
            QueueFull: at once, rather than let the caller wait for nothing.
            Closed: after `close`.
        """
        with self._condition:
            if self._closing:
                raise Closed
            if self._prepared + len(self._queue) >= self._max_queue:
                raise QueueFull(f"{self._max_queue} requests are waiting already")
            self._prepared += 1
        return Ticket(self)

    def close(self) -> None:
        """Takes no more requests; those that hold a ticket are still served, and the threads end after them."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()

    def join(self) -> None:
        """Waits, after `close`, until the last request is served."""
        for thread in self._threads:
            thread.join()

    def _submit(self, ticket: Ticket, key: Hashable, item: Any, count: int) -> Future[Any]:
        request = QueuedRequest(key, item, count, self._clock())
        with self._condition:
            if not ticket.held:
                raise RuntimeError("a ticket is for one item, while its block lasts")
            ticket.held, ticket.future = False, request.future
            self._prepared -= 1
            self._queue.put(request)
            self._condition.notify()
        # The callback does not know the request: future and request would hold each other, and keep the image and
        # the answer in memory until Python next looks for such cycles.
        request.future.add_done_callback(lambda future: self._discard(key, future) if future.cancelled() else None)
        return request.future

    def _give_back(self, ticket: Ticket) -> None:
        with self._condition:
            if ticket.held:
                ticket.held = False
                self._prepared -= 1
                self._condition.notify_all()

    def _discard(self, key: Hashable, future: Future[Any]) -> None:
        with self._condition:
            self._queue.discard(key, future)
            self._condition.notify_all()

    def _work(self) -> None:
        while batch := self._next_batch():
            self._execute(batch)
            del batch  # an idle thread holds no images

    def _next_batch(self) -> list[QueuedRequest]:
        """Sleeps until a batch is due; empty once all is done."""
        with self._condition:
            while True:
                now = float("inf") if self._closing else self._clock()
                if batch := self._queue.take(now):
                    # Another worker has to watch over the windows now, while this one is busy.
                    self._condition.notify_all()
                    return batch
                if self._closing and not self._prepared and not len(self._queue):
                    self._condition.notify_all()
                    return []
                due_at = self._queue.due_at()
                self._condition.wait(None if due_at is None else max(due_at - now, 0.0))

    def _execute(self, batch: list[QueuedRequest]) -> None:
        try:
            results = self._run([request.item for request in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(batch)} requests were computed and {len(results)} answers came back")
        except Exception as error:
            if len(batch) > 1:
                for request in batch:
                    self._execute([request])
            else:
                batch.pop().future.set_exception(error)  # the traceback has this frame, which must not hold the future
            return
        for request, result in zip(batch, results, strict=True):
            request.future.set_result(result)
