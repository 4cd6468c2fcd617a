"""`python -m benchmarks.step_profile`: which operations take a training step's time, by TensorFlow's own profiler.

Prints a table of the slowest types of operation. Operations run in parallel, so the sum of their times is more than the
step's: shares are of this sum. Needs `pip install -e ".[train]"`.
"""

import collections
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.train_step import PASSES, SEGMENTERS, TrainStep, kerasseg_run
from benchmarks.turns import circumstances, hold_to_cores, require_cores
from kerasseg.checks import require_one_of
from serving.common import cli

PICO_TO_MILLI = 1e-9


@dataclass(frozen=True, kw_only=True)
class StepProfile:
    """What to profile."""

    network: str = "deeplab_v3plus-mobilenet_v2"
    """Segmenter and backbone."""
    method: str = "supervised"
    """Name of a method."""
    steps: int = 5
    """Steps that are profiled, after two that are not."""
    cores: int = 2
    """Cores that the process may use."""
    rows: int = 15
    """Rows of the table; the rest is summed."""

    def __post_init__(self):
        require_one_of("--network", self.network, SEGMENTERS)
        require_one_of("--method", self.method, PASSES)


def operations(folder: Path) -> Iterator[tuple[str, float]]:
    """The type and the ms of each operation that TensorFlow ran on the CPU, from its profile in the folder."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    [file] = folder.rglob("*.xplane.pb")
    space = xplane_pb2.XSpace.FromString(file.read_bytes())
    [plane] = [plane for plane in space.planes if plane.name == "/host:CPU"]
    for line in plane.lines:
        for event in line.events:
            # As "gradient_tape/deeplab_v2/stem/Conv2DBackpropFilter:Conv2DBackpropFilter".
            name, _, kind = plane.event_metadata[event.metadata_id].name.rpartition(":")
            if kind.isidentifier() and name and not name.endswith(":"):  # no "ThreadpoolListener::Process"
                yield kind, event.duration_ps * PICO_TO_MILLI


def main(config: StepProfile) -> dict:
    require_cores(config.cores)
    hold_to_cores(config.cores)
    import tensorflow as tf

    setting = TrainStep(networks=(config.network,), methods=(config.method,))
    _, run = kerasseg_run(setting)
    run(2)
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            run(config.steps)
        taken: collections.Counter[str] = collections.Counter()
        calls: collections.Counter[str] = collections.Counter()
        for kind, milliseconds in operations(Path(folder)):
            taken[kind] += milliseconds / config.steps
            calls[kind] += 1
    total = taken.total()
    what = f"{config.network}, {config.method}, {config.steps} steps on {config.cores} cores"
    print(f"{circumstances('tensorflow')}; {what}.\n")
    print("| operation | a step | ms | share |\n| --- | ---: | ---: | ---: |")
    busiest = taken.most_common(config.rows)
    for kind, milliseconds in busiest:
        number = calls[kind] / config.steps
        print(f"| {kind} | {number:.0f} | {milliseconds:.1f} | {milliseconds / total:.1%} |")
    rest = total - sum(milliseconds for _, milliseconds in busiest)
    print(f"| the rest | | {rest:.1f} | {rest / total:.1%} |")
    return {"ms": round(total, 1)}


if __name__ == "__main__":
    cli.run(main, StepProfile, __doc__ or "")
