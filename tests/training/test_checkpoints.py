"""What is written while a run trains, and what is made of it after an accident."""

import errno
import threading

import numpy as np
import pytest
import tensorflow as tf

from kerasseg.methods import MLMT, Supervised
from tests.kerasseg.methods import tiny
from training import checkpoints
from training.callbacks import CheckpointEvery, Evaluation, MetricsLog
from training.checkpoints import Checkpoint, Checkpoints, training_variables


def compiled(seed=0, **fields):
    method = Supervised(tiny.segmenter(), steps=10, **fields)
    rng = np.random.default_rng(seed)
    method.set_weights([rng.normal(size=weight.shape) for weight in method.get_weights()])
    method.compile()
    return method


def stored(folder):
    return sorted(file.name for file in folder.iterdir())


def save(folder, method, scores, before=None):
    """A checkpoint of each step of `scores`, which says what was measured; each has other weights."""
    with Checkpoints(folder, method, "a split", before) as kept:
        for step, score in scores.items():
            method.segmenter.get_layer("w1").kernel.assign_add(np.ones((3, 4)))
            kept.save(step, {"L_ce": [1 / 3, float(step)]}, score)


def test_a_checkpoint_brings_everything_back(tmp_path):
    method = compiled()
    method.training_optimizers.segmenter.iterations.assign(7)
    save(tmp_path, method, {7: 0.25})
    checkpoint = Checkpoint.latest(tmp_path)
    assert (checkpoint.step, checkpoint.split_fingerprint, checkpoint.scores) == (7, "a split", {7: 0.25})
    assert checkpoint.log == {"L_ce": [1 / 3, 7.0]}

    other = compiled(seed=1)
    checkpoint.restore(other)
    expected = training_variables(method)
    assert len(expected) > len(method.variables) == 2
    for name, variable in training_variables(other).items():
        np.testing.assert_array_equal(variable, expected[name])


def test_the_last_two_and_the_best_stay(tmp_path):
    method = compiled()
    save(tmp_path, method, {1: 0.5, 2: 0.6, 3: None, 4: 0.4})
    assert stored(tmp_path) == ["step_0000002.npz", "step_0000003.npz", "step_0000004.npz"]
    assert Checkpoint.best(tmp_path).step == 2
    save(tmp_path, method, {5: 0.6}, before=Checkpoint.latest(tmp_path))  # of equals the later
    assert stored(tmp_path) == ["step_0000004.npz", "step_0000005.npz"]
    assert Checkpoint.best(tmp_path).step == 5


def test_the_best_state_of_the_networks_can_be_had_without_their_optimizers(tmp_path):
    method = compiled()
    save(tmp_path, method, {1: 0.5})
    best = method.get_weights()
    save(tmp_path, method, {2: 0.4}, before=Checkpoint.latest(tmp_path))
    untrained = Supervised(tiny.segmenter())
    Checkpoint.best(tmp_path).restore(untrained)
    for weight, expected in zip(untrained.get_weights(), best, strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_where_the_best_is_gone_that_is_said(tmp_path):
    save(tmp_path, compiled(), {1: 0.9, 2: 0.1, 3: 0.2})
    (tmp_path / "step_0000001.npz").unlink()
    with pytest.raises(ValueError, match="step_0000001.npz, the best checkpoint, is missing or damaged"):
        Checkpoint.best(tmp_path)


def test_a_checkpoint_comes_before_an_evaluation_and_has_its_score_after_it(tmp_path):
    class Log(MetricsLog):
        def __init__(self):
            self.pending, self.extra, self.metrics, self.speed = {"L": [0.5]}, {}, *(tmp_path / "a", tmp_path / "b")
            self.writer, self.trackers, self.step = tf.summary.create_noop_writer(), (), 0

    scores, before = iter([0.3, 0.2, 0.4]), []

    def evaluate():
        kept.wait()
        before.append(Checkpoint.latest(tmp_path))
        return {"mIoU": next(scores)}, {}, np.zeros((1, 1, 1, 3))

    with Checkpoints(tmp_path, compiled(), "a split") as kept:
        evaluation = Evaluation(0, 2, 9, kept, Log(), evaluate)
        every = CheckpointEvery(0, 10, kept, Log(), evaluation)
        for step in range(1, 8):
            evaluation.on_train_batch_end(step, {"L": step})
            every.on_train_batch_end(step)
    assert [(each.step, each.scores[each.step], each.log) for each in before] == [
        (step, None, {"L": [0.5, step]}) for step in (2, 4, 6)
    ]
    assert stored(tmp_path)[2:] == ["step_0000004.npz", "step_0000006.npz"]
    assert Checkpoint.latest(tmp_path).scores == {4: 0.2, 6: 0.4}
    assert Checkpoint.best(tmp_path).step == 6


def test_without_an_evaluation_none_is_the_best(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint that was measured on val"):
        Checkpoint.best(tmp_path)
    save(tmp_path, compiled(), {1: None})
    with pytest.raises(ValueError, match="holds no checkpoint that was measured on val"):
        Checkpoint.best(tmp_path)


def cut(contents):
    return contents[: len(contents) // 2]


def change_a_weight(contents):
    """One bit, in the middle of an array."""
    middle = contents.index(b"model/0.npy") + 150
    return contents[:middle] + bytes([contents[middle] ^ 1]) + contents[middle + 1 :]


@pytest.mark.parametrize("damage", [cut, change_a_weight, lambda contents: b"", lambda contents: b"not an archive"])
def test_of_a_damaged_checkpoint_the_one_before_is_used_and_that_is_said(tmp_path, capsys, damage):
    method = compiled()
    save(tmp_path, method, {1: None, 2: None})
    newest = tmp_path / "step_0000002.npz"
    newest.write_bytes(damage(newest.read_bytes()))
    before = Checkpoint.latest(tmp_path)
    assert before.step == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "step_0000002.npz is damaged (" in line and "continuing from the checkpoint before it" in line
    save(tmp_path, method, {3: None}, before=before)
    assert stored(tmp_path) == ["step_0000001.npz", "step_0000002.damaged", "step_0000003.npz"]


def test_where_no_checkpoint_is_whole_nothing_is_thrown_away(tmp_path):
    assert Checkpoint.latest(tmp_path) is None
    save(tmp_path, compiled(), {1: None, 2: None})
    for file in tmp_path.iterdir():
        file.write_bytes(cut(file.read_bytes()))
    with pytest.raises(ValueError, match="is whole: move that folder away to train from the start again"):
        Checkpoint.latest(tmp_path)
    assert stored(tmp_path) == ["step_0000001.npz", "step_0000002.npz"]


def test_a_file_that_cannot_be_read_now_is_no_damaged_one(tmp_path, monkeypatch):
    save(tmp_path, compiled(), {1: None, 2: None})

    def stale(file, **options):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(checkpoints.np, "load", stale)
    with pytest.raises(OSError, match="Stale file handle"):
        Checkpoint.latest(tmp_path)


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    save(tmp_path, compiled(), {1: None})
    (tmp_path / ".step_0000002.npz.17-4.tmp").write_bytes(b"half")
    assert Checkpoint.latest(tmp_path).step == 1
    save(tmp_path, compiled(), {}, before=Checkpoint.latest(tmp_path))
    assert stored(tmp_path) == ["step_0000001.npz"]


def test_a_full_disk_is_told_and_costs_nothing_that_is_there(tmp_path, monkeypatch):
    method = compiled()
    save(tmp_path, method, {1: None})

    def full(file, **arrays):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints.np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, method, {2: None}, before=Checkpoint.latest(tmp_path))
    assert stored(tmp_path) == ["step_0000001.npz"]
    assert Checkpoint.latest(tmp_path).step == 1


def test_training_goes_on_while_a_checkpoint_is_written_and_does_not_change_it(tmp_path, monkeypatch):
    method = compiled()
    weight, savez = method.segmenter.get_layer("w1").kernel, np.savez
    before, moved = weight.numpy(), threading.Event()
    with Checkpoints(tmp_path, method, "a split") as kept:

        def after_the_next_step(file, **arrays):
            assert moved.wait(timeout=60)
            savez(file, **arrays)

        monkeypatch.setattr(checkpoints.np, "savez", after_the_next_step)
        kept.save(1, {})
        assert stored(tmp_path) == [] or stored(tmp_path)[0].endswith(".tmp")
        weight.assign_add(np.ones((3, 4)))
        moved.set()
    np.testing.assert_array_equal(Checkpoint.latest(tmp_path).arrays["model/0"], before)


def test_replicas_keep_what_is_their_own(two_replicas, tmp_path):
    """Batch-norm statistics differ between replicas; what a checkpoint brings back does too."""

    def build():
        with two_replicas.scope():
            method = MLMT(tiny.segmenter(), tiny.classifier(), tiny.classifier(name="teacher"), steps=4)
            method.compile()
        return method

    def statistics(method):
        mean = method.student.get_layer("bn").moving_mean.value
        return [copy.numpy() for copy in two_replicas.experimental_local_results(mean)]

    method = build()
    mean = method.student.get_layer("bn").moving_mean.value
    for replica, copy in enumerate(two_replicas.experimental_local_results(mean)):
        copy.assign(np.full(4, replica + 1.0))
    with Checkpoints(tmp_path, method, "a split") as kept:
        kept.save(1, {})
    other = build()
    Checkpoint.latest(tmp_path).restore(other)
    assert [values.tolist() for values in statistics(other)] == [[1.0] * 4, [2.0] * 4]
    # To look at it, one device is enough: the first one's are those of the trained model.
    alone = MLMT(tiny.segmenter(), tiny.classifier(), tiny.classifier(name="teacher"), steps=4)
    Checkpoint.latest(tmp_path).restore(alone)
    assert alone.student.get_layer("bn").moving_mean.numpy().tolist() == [1.0] * 4


def test_a_checkpoint_of_other_networks_is_refused(tmp_path):
    save(tmp_path, compiled(), {1: None})
    method = Supervised(tiny.segmenter(classes=5), steps=10)
    method.compile()
    with pytest.raises(ValueError, match="was written by other networks or optimizers"):
        Checkpoint.latest(tmp_path).restore(method)
    method = compiled(optimizer="adamw")
    with pytest.raises(ValueError, match="was written by other networks or optimizers"):
        Checkpoint.latest(tmp_path).restore(method)
