"""`python -m training.run --dry-run`."""

import pytest

from tests.training.commands import TINY, call, error_line
from training import run

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Even though the `tf.config:UserWarning")]


def test_a_dry_run_tells_what_a_training_takes_and_writes_nothing(dataset, tmp_path, capsys):
    out = tmp_path / "run"
    flags = ["--dry-run", "--evaluate-every", "40", "--mlmt.steps", "30", "--mlmt.branch", "supervised"]
    arguments = ["--method", "mlmt", "--dataset", dataset, "--labeled", "2", "--out", out, *TINY, *flags]
    status, told, err = call(run.main, [*arguments, "--supervised.steps", "90"], capsys)
    assert status == 0, err
    assert not out.exists()
    assert told["parameters"].keys() == {"segmenter", "student", "teacher"} and told["evaluations"] == 3
    assert told["parameters"]["student"] == told["parameters"]["teacher"] > 0
    assert told["seconds_per_step"].keys() == {"supervised", "mlmt"} and told["peak_memory_bytes"] > 2**28
    expected = 90 * told["seconds_per_step"]["supervised"] + 30 * told["seconds_per_step"]["mlmt"]
    expected += 3 * told["seconds_per_evaluation"] + told["seconds_of_last_evaluation"]
    assert told["seconds"] == pytest.approx(expected, abs=1)
    assert "supervised   90 steps of " in err and "mlmt         30 steps of " in err

    status, _, err = call(run.main, [*arguments, "--resume"], capsys)
    assert status == 2 and "leave --resume out" in error_line(err)
