"""The batcher without models, HTTP or a clock: time is a number that the tests move."""

import gc
import threading
import weakref
from concurrent.futures import CancelledError

import pytest

from serving.model.batcher import Batcher, Closed, QueuedRequest, QueueFull, RequestQueue


def queue_of(*requests, batch_size=4, max_delay=10.0):
    queue = RequestQueue(lambda key: batch_size, max_delay)
    for request in requests:
        queue.put(request)
    return queue


def request(item, key="size", count=1, arrived=0.0):
    return QueuedRequest(key, item, count, arrived)


def items(batch):
    return [request.item for request in batch]


def test_window_opens_at_the_first_request():
    queue = queue_of(request("a", arrived=100), request("b", arrived=107))
    assert queue.due_at() == 110
    assert queue.take(109.9) == []
    assert items(queue.take(110)) == ["a", "b"]
    assert queue.due_at() is None
    queue.put(request("c", arrived=500))
    assert queue.due_at() == 510


def test_a_full_batch_does_not_wait():
    queue = queue_of(*(request(n) for n in range(6)))
    assert items(queue.take(0)) == [0, 1, 2, 3]
    assert queue.take(0) == []
    assert len(queue) == 2


def test_keys_are_never_mixed_and_the_longest_waiting_goes_first():
    queue = queue_of(request("a", "s", arrived=1), request("b", "t", arrived=0), request("c", "s", arrived=2))
    assert queue.due_at() == 10
    assert items(queue.take(30)) == ["b"]
    assert items(queue.take(30)) == ["a", "c"]


def test_a_full_group_does_not_overtake_one_that_is_due_longer():
    queue = queue_of(request("old", "s", arrived=0), *(request(n, "t", arrived=5) for n in range(4)))
    assert items(queue.take(9)) == [0, 1, 2, 3]
    queue = queue_of(request("old", "s", arrived=0), *(request(n, "t", arrived=5) for n in range(4)))
    assert items(queue.take(10)) == ["old"]


def test_requests_of_several_images_fill_a_batch_and_are_not_split():
    queue = queue_of(request("a", count=3), request("b", count=2), request("c", count=9))
    assert items(queue.take(0)) == ["a"]
    assert items(queue.take(0)) == ["b"]
    assert items(queue.take(0)) == ["c"]  # larger than a batch: alone


def test_batch_size_goes_by_the_key():
    queue = RequestQueue(lambda key: {"large": 1, "small": 3}[key], 10)
    for name in ("large", "small"):
        for n in range(2):
            queue.put(request(f"{name}{n}", name))
    assert items(queue.take(0)) == ["large0"]
    assert items(queue.take(0)) == ["large1"]
    assert queue.take(0) == []


def test_cancelled_requests_are_left_out():
    first, second, third = (request(n) for n in range(3))
    queue = queue_of(first, second, third)
    second.future.cancel()
    assert items(queue.take(10)) == [0, 2]
    queue = queue_of(lone := request("a"), request("b", "t"))
    queue.discard(lone.key, lone.future)
    queue.discard(lone.key, lone.future)
    assert (len(queue), items(queue.take(10))) == (1, ["b"])


class Gate:
    """A `run` that notes its batches and waits in each until it is let go."""

    def __init__(self):
        self.batches, self.entered, self.open = [], threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, batch):
        self.batches.append(batch)
        self.entered.release()
        assert self.open.acquire(timeout=60)
        return [f"{item}!" for item in batch]


@pytest.fixture
def batcher():
    """Makes batchers, and ends their threads."""
    made = []

    def make(run, batch_size=4, **options):
        made.append(Batcher(run, lambda key: batch_size, **options))
        return made[-1]

    yield make
    for batcher in made:
        batcher.close()
        batcher.join()


def submit(batcher, item, key="size", count=1):
    with batcher.admit() as ticket:
        return ticket.submit(key, item, count)


def test_what_arrives_while_a_batch_runs_is_the_next_batch(batcher):
    gate = Gate()
    batches = batcher(gate)
    first = submit(batches, "a")
    assert gate.entered.acquire(timeout=60)
    others = [submit(batches, item) for item in "bcdef"]
    gate.open.release(3)
    assert [future.result(60) for future in (first, *others)] == ["a!", "b!", "c!", "d!", "e!", "f!"]
    assert gate.batches == [["a"], ["b", "c", "d", "e"], ["f"]]


def test_waits_for_more_no_longer_than_the_window(batcher):
    """The clock stands still, so a batch that is not full can only go because the window has closed."""
    now = [0.0]
    batches = batcher(lambda items: items, batch_size=2, max_delay=3600, clock=lambda: now[0])
    lone = submit(batches, "a", "s")
    assert [submit(batches, item, "t") for item in "bc"][1].result(60) == "c"  # full
    assert not lone.done()
    now[0] = 3600.0
    [submit(batches, item, "t") for item in "de"]  # whatever wakes the thread
    assert lone.result(60) == "a"


def test_queue_is_bounded_at_once_and_counts_what_is_being_prepared(batcher):
    gate = Gate()
    batches = batcher(gate, max_queue=2)
    running = submit(batches, "a")
    assert gate.entered.acquire(timeout=60)
    waiting = submit(batches, "b")
    with batches.admit():
        assert batches.full
        with pytest.raises(QueueFull, match="2 requests are waiting"):
            batches.admit()
    assert batches.pending == 1  # the ticket that was not used is back
    submit(batches, "c").cancel()
    assert batches.pending == 1  # a request that was taken back makes room at once
    gate.open.release(2)
    assert (running.result(60), waiting.result(60)) == ("a!", "b!")
    assert gate.batches == [["a"], ["b"]]


def test_who_is_interrupted_leaves_nothing_behind(batcher):
    """Neither a place nor an item that another thread has submitted meanwhile, or would."""
    batches = batcher(lambda items: items, max_delay=3600)
    submitted = []
    with pytest.raises(KeyboardInterrupt), batches.admit() as ticket:
        submitted.append(ticket.submit("size", "b"))
        raise KeyboardInterrupt
    assert submitted[0].cancelled()
    with pytest.raises(KeyboardInterrupt), batches.admit() as late:
        raise KeyboardInterrupt
    with pytest.raises(RuntimeError, match="while its block lasts"):
        late.submit("size", "c")
    assert batches.pending == 0


def test_a_request_that_runs_cannot_be_taken_back(batcher):
    gate = Gate()
    batches = batcher(gate)
    running = submit(batches, "a")
    assert gate.entered.acquire(timeout=60)
    assert not running.cancel()
    waiting = submit(batches, "b")
    assert waiting.cancel()
    gate.open.release()
    assert running.result(60) == "a!"
    with pytest.raises(CancelledError):
        waiting.result(60)


def test_one_that_cannot_be_computed_fails_alone(batcher):
    gate = Gate()

    def run(batch):
        answers = gate(batch)
        if "bad" in batch:
            raise MemoryError("too large")
        return answers

    batches = batcher(run)
    first = submit(batches, "a")
    assert gate.entered.acquire(timeout=60)
    futures = [submit(batches, item) for item in ("b", "bad", "c")]
    gate.open.release(5)
    assert [future.result(60) for future in (first, futures[0], futures[2])] == ["a!", "b!", "c!"]
    with pytest.raises(MemoryError, match="too large"):
        futures[1].result(60)
    assert gate.batches == [["a"], ["b", "bad", "c"], ["b"], ["bad"], ["c"]]


@pytest.mark.parametrize("fails", [False, True])
def test_what_was_answered_is_let_go_at_once(batcher, fails):
    """An image and its answer in a reference cycle stay until Python looks for cycles: hundreds of MiB under load."""

    class Image(Exception):
        pass

    def run(batch):
        if fails:
            raise Image
        return [Image() for _ in batch]

    def answered(future):
        return future.exception(timeout=60) or future.result()

    made = batcher(run)
    gc.disable()
    try:
        image = Image()
        future = submit(made, image)
        answer = answered(future)
        held = [weakref.ref(image), weakref.ref(answer), weakref.ref(future)]
        del image, answer, future
        answered(submit(made, Image()))  # by then the thread has let go of the batch before
        assert [alive() for alive in held] == [None] * 3
    finally:
        gc.enable()


def test_a_wrong_number_of_answers_is_an_error(batcher):
    future = submit(batcher(lambda batch: []), "a")
    with pytest.raises(RuntimeError, match="1 requests were computed and 0 answers came back"):
        future.result(60)


def test_closing_serves_what_was_admitted(batcher):
    gate = Gate()
    batches = batcher(gate, max_delay=3600)
    futures = [submit(batches, "a", "s"), submit(batches, "b", "t")]
    late = batches.admit()
    batches.close()
    with pytest.raises(Closed):
        batches.admit()
    with late:
        futures.append(late.submit("s", "c"))
    with pytest.raises(RuntimeError, match="a ticket is for one item"):
        late.submit("s", "d")
    gate.open.release(3)
    assert [future.result(60) for future in futures] == ["a!", "b!", "c!"]
    batches.join()


def test_workers_run_side_by_side(batcher):
    gate = Gate()
    batches = batcher(gate, workers=2)
    futures = [submit(batches, "a"), submit(batches, "b", "other")]
    assert all(gate.entered.acquire(timeout=60) for _ in range(2))  # both, before either is let go
    gate.open.release(2)
    assert [future.result(60) for future in futures] == ["a!", "b!"]


def test_an_idle_batcher_sleeps(batcher):
    """It asks the clock when something happens, and not again before something else does."""
    asked = []
    batches = batcher(lambda items: items, clock=lambda: asked.append(threading.current_thread().name) or 0.0)
    assert submit(batches, "a").result(60) == "a"
    before = len(asked)
    with pytest.raises(TimeoutError):  # time passes; how much does not matter
        submit(batcher(lambda items: items, max_delay=3600), "b").result(0.05)
    assert len(asked) <= before + 1
