"""A run survives anything: killed twenty times at whatever moment, it ends as the run that was never stopped."""

import json
import multiprocessing
import random
import signal

import numpy as np
import pytest

from tests.kerasseg.data.folders import make_folder
from training.checkpoints import Checkpoint

pytestmark = pytest.mark.slow

KILLS = 20


@pytest.fixture(scope="module")
def process():
    """Starts `victim.train` in a process of its own, and returns its exit status."""
    # A server that has imported everything, and computed nothing, forks each of them in no time.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.victim"])

    def start(*arguments):
        from tests.training import victim

        process = context.Process(target=victim.train, args=arguments)
        process.start()
        process.join()
        return process.exitcode

    return start


def test_twenty_kills_change_nothing(process, tmp_path):
    dataset = make_folder(tmp_path / "pets", train=6, val=2)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert process(dataset, whole) == 0
    seconds = max(json.loads(line)["seconds"] for line in (whole / "speed.jsonl").read_text().splitlines())

    chance = random.Random(0)
    statuses = []
    for kill in range(KILLS):
        # Half of them around files, where most can go wrong: among what is opened, renamed and removed in two steps.
        # The others by the clock, in the first few steps.
        moment = (chance.randrange(12), None) if kill % 2 else (None, chance.uniform(0, 0.2 * seconds))
        statuses.append(process(dataset, killed, *moment))
    # The clock's may come after the end, where the machine is less busy than during the first run.
    assert statuses.count(-signal.SIGKILL) >= KILLS // 4 and set(statuses) <= {0, -signal.SIGKILL}
    assert process(dataset, killed) == 0

    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    expected, got = (Checkpoint.latest(run / "checkpoints") for run in (whole, killed))
    assert got.step == expected.step == 12 and got.scores == expected.scores
    assert got.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(got.arrays[name], array, err_msg=name)
    results = [json.loads((run / "result.json").read_text()) for run in (whole, killed)]
    assert results[0]["mIoU"] == results[1]["mIoU"] and results[0]["without_gate"] == results[1]["without_gate"]
    assert sorted(file.name for file in (killed / "checkpoints").iterdir()) == sorted(
        file.name for file in (whole / "checkpoints").iterdir()
    )
