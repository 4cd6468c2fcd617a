"""What the settings of a run are for that do not decide its result, and the facts that config.json adds to them."""

from typing import NamedTuple


class Mark(NamedTuple):
    """How a setting or fact is used. One without a mark of its own decides the result: it has all four."""

    recorded: bool = True
    """config.json has it."""
    resumed: bool = True
    """A resumed run must have the same."""
    compared: bool = True
    """Runs that differ in it are not averaged, and no table compares their methods."""
    kept: bool = True
    """It is kept with a benchmark's scores, on other machines too."""


NOT_RECORDED = Mark(recorded=False, resumed=False, compared=False, kept=False)
RUN = Mark(compared=False)  # runs of one method may differ in it
FACT = Mark(resumed=False, compared=False)
MACHINE = Mark(compared=False, kept=False)

MARKS: dict[str, Mark] = {
    "out": NOT_RECORDED,
    "resume": NOT_RECORDED,
    "dry_run": NOT_RECORDED,
    "gradient_norms": NOT_RECORDED,
    "log_to": NOT_RECORDED,
    "checkpoint_every": NOT_RECORDED,
    "protocol": NOT_RECORDED,  # result.json has it
    "protocol_settings": NOT_RECORDED,
    "seed": RUN,
    "split_fingerprint": RUN,
    "recipe": RUN,  # its settings are recorded one by one
    "log_every": RUN,
    "evaluate_every": RUN,
    "commit": FACT,
    "versions": FACT,
    "machine": FACT,
    "untrained_taps": FACT,
    "branch_method": FACT,  # a method of one's own, or of --branch-run, that mlmt is built on
    "initial_weights": Mark(resumed=False),
    "dataset": MACHINE,
    "weights": MACHINE,
    "branch_run": MACHINE,
    "palette": Mark(resumed=False, compared=False, kept=False),  # colours decide nothing
    "command": Mark(resumed=False, compared=False, kept=False),
    "finished": Mark(resumed=False, compared=False, kept=False),
    "about_method": Mark(resumed=False, compared=False, kept=False),
    "terms": Mark(resumed=False, compared=False, kept=False),
}


def mark(name: str) -> Mark:
    """The mark of a setting or a fact."""
    return MARKS.get(name, Mark())
