"""What happens around the steps of a training: log, progress, evaluation, checkpoints, stopping."""

import json
import math
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from training.checkpoints import Checkpoints
from training.run_folder import read_history


class StepCallback(keras.callbacks.Callback):
    """A callback that counts steps from where the run was resumed."""

    def __init__(self, start_step: int):
        super().__init__()
        self.step = start_step

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        self.after_step(logs or {})

    def after_step(self, logs: dict[str, float]) -> None:
        raise NotImplementedError


class StopAtNonFinite(StepCallback):
    """Ends training at the first loss term that is not a finite number, before a checkpoint can hold it."""

    def after_step(self, logs):
        for name, value in logs.items():
            if not math.isfinite(value):
                raise ValueError(
                    f"{name} became {float(value)} at step {self.step}: lower --learning-rate (with mixed_float16 try "
                    "mixed_bfloat16); --resume goes on from the last checkpoint"
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
        first = next(iter(logs), None)
        self.bar.set_postfix_str(
            f"{rate:.1f} images/s" + (f", {first} {logs[first]:.3f}" if first else ""), refresh=False
        )
        self.bar.update()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.bar.close()  # ends its line, so that an error message has one of its own


class MetricsLog(StepCallback):
    """metrics.jsonl and TensorBoard scalars: means over `every` steps.

    Lines from after the step a run is resumed at are dropped: those steps are made again.
    """

    def __init__(self, folder: Path, start_step: int, every: int, images_per_step: int):
        super().__init__(start_step)
        self.path, self.every, self.images_per_step = folder / "metrics.jsonl", every, images_per_step
        kept = [line for line in read_history(folder) if line["step"] <= start_step]
        self.seconds_before = kept[-1]["seconds"] if kept else 0.0
        part = self.path.with_suffix(".part")
        part.write_text("".join(json.dumps(line) + "\n" for line in kept))
        part.replace(self.path)
        self.writer = tf.summary.create_file_writer(str(folder / "tensorboard"))
        self.values: dict[str, list[float]] = {}
        self.count = 0
        self.extra: dict[str, float] = {}
        self.began = self.window_began = time.perf_counter()

    def note(self, values: dict[str, float]) -> None:
        """Adds values, such as a validation score, to the line of the present step."""
        self.extra |= values

    @property
    def seconds(self) -> float:
        """Of training, evaluations included, over all the run's sessions."""
        return self.seconds_before + time.perf_counter() - self.began

    def after_step(self, logs):
        for name, value in logs.items():
            self.values.setdefault(name, []).append(float(value))
        self.count += 1
        if self.step % self.every == 0 or self.extra:  # a score belongs to the line of its own step
            self.flush()

    def flush(self) -> None:
        """Writes the line of the present step."""
        if not self.count and not self.extra:
            return
        now = time.perf_counter()
        line = {"step": self.step, "seconds": round(self.seconds, 3)}
        if self.count:
            line["images_per_second"] = round(self.count * self.images_per_step / (now - self.window_began), 2)
            line["learning_rate"] = float(self.model.main_optimizer.learning_rate)
        # A term may be there in some steps only: mlmt's stages have different ones.
        line |= {name: sum(values) / len(values) for name, values in self.values.items()} | self.extra
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        with self.writer.as_default(step=self.step):
            for name, value in line.items():
                if name != "step":
                    tf.summary.scalar(name, value)
        self.values, self.count, self.extra, self.window_began = {}, 0, {}, now

    def on_train_end(self, logs=None):
        self.flush()
        self.writer.flush()


class Evaluation(StepCallback):
    """Scores and picture panels on held-out images every so many steps, and after the last one.

    Args:
        evaluate: returns the result, scores of it for the log, and panels (N,H,W,3) for TensorBoard.
    """

    def __init__(
        self,
        start_step: int,
        every: int,
        last: int,
        log: MetricsLog,
        evaluate: Callable[[], tuple[dict, dict, np.ndarray]],
    ):
        super().__init__(start_step)
        self.every, self.last, self.log, self.evaluate = every, last, log, evaluate
        self.latest: dict | None = None
        """The result of the last evaluation."""

    def after_step(self, logs):
        if self.step % self.every and self.step != self.last:
            return
        self.latest, values, panels = self.evaluate()
        self.log.note(values)
        with self.log.writer.as_default(step=self.step):
            tf.summary.image("image, truth, prediction, critic's score", panels, max_outputs=len(panels))


class CheckpointEvery(StepCallback):
    """A checkpoint every so many steps and at the end, be it the last step or an interruption."""

    def __init__(self, start_step: int, every: int, checkpoints: Checkpoints):
        super().__init__(start_step)
        self.every, self.checkpoints = every, checkpoints

    def after_step(self, logs):
        if self.step % self.every == 0:
            self.checkpoints.save(self.step)

    def on_train_end(self, logs=None):
        self.checkpoints.save(self.step)


class Interruption(StepCallback):
    """Ctrl-C or SIGTERM ends training after the present step, in good order; a second one ends it at once.

    Args:
        agree: from the signal that this worker has received (0 for none) to the one by which all of them stop.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, start_step: int, agree: Callable[[int], int] = lambda received: received):
        super().__init__(start_step)
        self.agree = agree

    def on_train_begin(self, logs=None):
        self.received: int | None = None
        self.previous = {number: signal.signal(number, self._receive) for number in self.SIGNALS}

    def _receive(self, number, frame):
        self._restore()
        self.received = number
        print("\nstopping after this step, with a checkpoint (once more to stop at once)", file=sys.stderr)

    def after_step(self, logs):
        if agreed := self.agree(self.received or 0):
            self.received = agreed
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        self._restore()

    def _restore(self):
        for number, handler in self.previous.items():
            signal.signal(number, handler)
