"""Checkpoints of a run: all that an unbroken continuation needs."""

from pathlib import Path

import tensorflow as tf

from kerasseg.methods import Method

KEEP = 2


class Checkpoints:
    """The last few states of a training, in `folder`, on TensorFlow's own checkpoint format.

    Args:
        folder: made when missing.
        method: compiled; its weights, random states and optimizers are what is stored.
        split_fingerprint: of the images that it learns from.
    """

    def __init__(self, folder: Path, method: Method, split_fingerprint: str):
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.split_fingerprint = split_fingerprint
        self.stored_fingerprint = tf.Variable(split_fingerprint, trainable=False)
        self.checkpoint = tf.train.Checkpoint(
            step=self.step, split_fingerprint=self.stored_fingerprint, variables=method.training_variables()
        )
        self.manager = tf.train.CheckpointManager(
            self.checkpoint, str(folder), max_to_keep=KEEP, step_counter=self.step
        )

    def save(self, step: int) -> None:
        """Stores the state after `step` steps; a state already stored is not written again."""
        if self.manager.latest_checkpoint and int(self.step) == step:
            return
        self.step.assign(step)
        self.manager.save()

    def restore(self) -> int:
        """Brings the last state back and returns its step; 0 where a run was stopped before its first checkpoint.

        Raises:
            ValueError: it belongs to other networks, or to a training on other images.
        """
        latest = self.manager.latest_checkpoint
        if not latest:
            return 0
        try:
            self.checkpoint.restore(latest).assert_existing_objects_matched()
        except (AssertionError, ValueError) as error:
            raise ValueError(
                f"{latest} was written by other networks or optimizers than these settings give: resume with the "
                f"settings of the run ({type(error).__name__})"
            ) from error
        if self.stored_fingerprint.numpy().decode() != self.split_fingerprint:
            raise ValueError(f"{latest} was trained on another split than the run's folder `split` has: put it back")
        return int(self.step)
