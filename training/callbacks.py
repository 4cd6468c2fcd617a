"""What happens around the steps of a training: log, progress, evaluation, checkpoints, stopping."""

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams
from tqdm import tqdm

from serving.common.files import naming, temporary_file
from training.checkpoints import Checkpoints
from training.console import print_evaluation
from training.run_folder import METRICS, SPEED, read_lines, settings
from training.trackers import Tracker


class StepCallback(keras.callbacks.Callback):
    """A callback that counts steps from where the run was resumed."""

    def __init__(self, start_step: int):
        super().__init__()
        self.step = start_step

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        terms = getattr(self.model, "term_names", ())  # `loss` is the first of them once more
        self.after_step({name: value for name, value in (logs or {}).items() if name != "loss" or name in terms})

    def after_step(self, logs: dict[str, float]) -> None:
        raise NotImplementedError


class StopAtNonFinite(StepCallback):
    """Ends training at the first loss term that is not a finite number, before a checkpoint can hold it."""

    def after_step(self, logs):
        for name, value in logs.items():
            if not math.isfinite(value):
                raise ValueError(
                    f"{name} became {float(value)} at step {self.step}: start again, with another --out and a lower "
                    "--learning-rate (instead of mixed_float16 try mixed_bfloat16)"
                )


class Progress(StepCallback):
    """A bar on stderr with images/s and the time left; a context manager, closed on leaving."""

    def __init__(self, start_step: int, steps: int, images_per_step: int):
        super().__init__(start_step)
        self.images_per_step = images_per_step
        # Redrawn at most twice a second; without a terminal twice a minute, so that logs stay readable.
        interval = 0.5 if sys.stderr.isatty() else 30
        self.bar = tqdm(total=steps, initial=start_step, unit="step", file=sys.stderr, mininterval=interval)
        self.started, self.start_step = time.perf_counter(), start_step

    def after_step(self, logs):
        seconds = time.perf_counter() - self.started
        rate = (self.step - self.start_step) * self.images_per_step / seconds
        total = next(iter(self.model.loss_first(logs).values()), None)
        self.bar.set_postfix_str(
            f"{rate:.1f} images/s" + ("" if total is None else f", loss {total:.3f}"), refresh=False
        )
        self.bar.update()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.bar.close()  # ends its line, so that an error message has one of its own


class MetricsLog(StepCallback):
    """metrics.jsonl and TensorBoard scalars: means over `every` steps. speed.jsonl, next to it, has what differs
    between two equal runs: seconds since the run began, and images/s.

    Lines after the state from which a run is resumed are dropped: they are written again.

    Args:
        pending: the value of `pending` in that state.
        trackers: services that get the same.
    """

    def __init__(
        self,
        folder: Path,
        start_step: int,
        last: int,
        every: int,
        images_per_step: int,
        pending: dict[str, list[float]] | None = None,
        trackers: Sequence[Tracker] = (),
    ):
        super().__init__(start_step)
        self.last, self.every, self.images_per_step = last, every, images_per_step
        self.metrics, self.speed = folder / METRICS, folder / SPEED
        last_line = start_step - bool(pending)
        for path in (self.metrics, self.speed):
            kept = [line for line in read_lines(path) if line["step"] <= last_line]
            with temporary_file(path, durable=True) as file:
                file.write("".join(json.dumps(line) + "\n" for line in kept).encode())
        self.seconds_before = max((line["seconds"] for line in read_lines(self.speed)), default=0.0)
        self.writer = tf.summary.create_file_writer(str(folder / "tensorboard"))
        self.trackers = trackers
        self.pending = dict(pending or {})
        """Values of the steps since the last line, by name."""
        self.extra: dict[str, float] = {}
        self.began = self.line_began = time.perf_counter()
        self.line_began_at = start_step

    def describe(self, config: Mapping[str, Any]) -> None:
        """Shows the settings of a run in TensorBoard's table of hyperparameters.

        Args:
            config: the content of config.json.
        """
        values = {
            name: value if isinstance(value, bool | int | float) else str(value)
            for name, value in settings(config).items()
        }
        with self.writer.as_default(step=self.step):
            hparams.hparams(values)

    def show(self, panels_NHW3: np.ndarray) -> None:
        """Adds images of the present step, uint8 RGB."""
        with self.writer.as_default(step=self.step):
            tf.summary.image("image, truth, prediction, critic's score", panels_NHW3, max_outputs=len(panels_NHW3))
        for tracker in self.trackers:
            tracker.show(self.step, panels_NHW3)

    def note(self, values: dict[str, float]) -> None:
        """Adds values, such as a validation score, to the line of the present step."""
        self.extra |= values

    @property
    def seconds(self) -> float:
        """Seconds of training, evaluations included, over all the run's sessions."""
        return self.seconds_before + time.perf_counter() - self.began

    def pending_with(self, logs: dict[str, float]) -> dict[str, list[float]]:
        """`pending` with these values added."""
        more = {name: [*self.pending.get(name, []), float(value)] for name, value in logs.items()}
        return self.pending | more

    def after_step(self, logs):
        self.pending = self.pending_with(logs)
        # A score belongs to the line of its own step.
        if self.step % self.every == 0 or self.step == self.last or self.extra:
            self.write_line()

    def write_line(self) -> None:
        now = time.perf_counter()
        # A term may exist in some steps only: mlmt's stages have different ones.
        means = {name: sum(values) / len(values) for name, values in self.pending.items()}
        line = {"learning_rate": float(self.model.main_optimizer.learning_rate)} | means | self.extra
        speed = {"seconds": round(self.seconds, 3)}
        if steps := self.step - self.line_began_at:  # none where a resumed run writes the line of the step it starts at
            speed["images_per_second"] = round(steps * self.images_per_step / (now - self.line_began), 2)
        for path, values in ((self.metrics, line), (self.speed, speed)):
            with naming(path), path.open("a") as file:
                file.write(json.dumps({"step": self.step} | values) + "\n")
        with self.writer.as_default(step=self.step):
            for name, value in (speed | line).items():
                tf.summary.scalar(name, value)
        for tracker in self.trackers:
            tracker.log(self.step, speed | line)
        self.pending, self.extra, self.line_began, self.line_began_at = {}, {}, now, self.step

    def sync(self) -> None:
        """Returns when the lines so far are on the disk: a checkpoint relies on them."""
        for path in (self.metrics, self.speed):
            with path.open("a") as file:
                os.fsync(file.fileno())

    def on_train_end(self, logs=None):
        self.writer.flush()


class Evaluation(StepCallback):
    """Scores and image panels on held-out images every so many steps, and after the last one.

    It runs before the log, and after a checkpoint, so that no step is lost if it fails.

    Args:
        evaluate: returns the result, scores of it for the log, and panels (N,H,W,3) for TensorBoard.
    """

    def __init__(
        self,
        start_step: int,
        every: int,
        last: int,
        checkpoints: Checkpoints,
        log: MetricsLog,
        evaluate: Callable[[], tuple[dict, dict, np.ndarray]],
    ):
        super().__init__(start_step)
        self.every, self.last, self.checkpoints, self.log, self.evaluate = every, last, checkpoints, log, evaluate
        self.latest: dict | None = None
        """The result of the last evaluation."""
        self.score: float | None = None
        """mIoU after the present step, where it was measured."""

    @property
    def due(self) -> bool:
        """Whether an evaluation follows the present step."""
        return self.step % self.every == 0 or self.step == self.last

    def after_step(self, logs):
        self.score = None
        if self.due:
            self.log.sync()
            self.checkpoints.save(self.step, self.log.pending_with(logs))
            self.measure()

    def measure(self) -> None:
        self.latest, values, panels = self.evaluate()
        self.score = self.latest["mIoU"]
        print_evaluation(self.step, self.last, self.latest)
        self.log.note(values)
        self.log.show(panels)


class CheckpointEvery(StepCallback):
    """A checkpoint every so many steps, after an evaluation, and at the end: after the last step or an interruption.

    It runs after the log and the evaluation, whose state it holds.
    """

    def __init__(self, start_step: int, every: int, checkpoints: Checkpoints, log: MetricsLog, evaluation: Evaluation):
        super().__init__(start_step)
        self.every, self.checkpoints, self.log, self.evaluation = every, checkpoints, log, evaluation

    def after_step(self, logs):
        if self.step % self.every == 0 or self.evaluation.score is not None:
            self.save()

    def finish_step(self) -> None:
        """Completes the step in whose evaluation an earlier session of the run ended."""
        self.evaluation.measure()
        self.log.write_line()
        self.save()

    def on_train_end(self, logs=None):
        self.save()

    def save(self) -> None:
        self.log.sync()
        self.checkpoints.save(self.step, self.log.pending, self.evaluation.score)


class Interruption(StepCallback):
    """Ctrl-C or SIGTERM ends training after the present step, with a checkpoint; a second one ends it at once. A
    context manager: on leaving, it restores the signals' handlers.

    Args:
        agree: a function of the signal that this worker has received (0 for none); it gives the signal by which all
            workers stop.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, start_step: int, agree: Callable[[int], int] = lambda received: received):
        super().__init__(start_step)
        self.agree = agree
        self.received = 0
        self.agreed = 0
        """The signal that ended the training, 0 for none."""
        self.previous: dict[int, Any] = {}

    def __enter__(self):
        self.previous = {number: signal.signal(number, self._receive) for number in self.SIGNALS}
        return self

    def __exit__(self, *exception):
        self._restore()

    def _receive(self, number, frame):
        self._restore()
        self.received = number
        print("\nstopping after this step, with a checkpoint (once more to stop at once)", file=sys.stderr)

    def after_step(self, logs):
        self.agreed = self.agree(self.received)
        if self.agreed:
            self.model.stop_training = True

    def _restore(self):
        for number, handler in self.previous.items():
            signal.signal(number, handler)
