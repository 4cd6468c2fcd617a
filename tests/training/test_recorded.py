import dataclasses

from training.config import RunConfig
from training.recorded import MARKS, mark

FACTS = {
    *(
        "about_method",
        "branch_method",
        "command",
        "commit",
        "finished",
        "initial_weights",
        "machine",
        "palette",
        "split_fingerprint",
    ),
    *("terms", "untrained_taps", "versions"),
}


def test_every_mark_is_of_a_setting_or_a_fact():
    settings = {field.name for field in dataclasses.fields(RunConfig)}
    assert settings | FACTS >= MARKS.keys() and not settings & FACTS


def test_what_has_no_mark_decides_the_result():
    assert all(mark("crop")) and all(mark("a_setting_to_come"))
    assert mark("seed").resumed and not mark("seed").compared
    assert mark("log_every").recorded and not mark("log_every").compared
    assert not mark("out").recorded and not mark("versions").resumed
