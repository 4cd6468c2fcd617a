"""`python -m benchmarks.camvid`: all methods on CamVid with 12 labelled frames, and what more labels are worth.

CamVid is a dataset folder of 367 train and 101 val frames, 480x360, 11 classes; the weights are those of MobileNetV2
(alpha 1.0, no top) from ImageNet.
"""

from pathlib import Path

import tyro

from benchmarks.comparison import Comparison, main
from serving import cli

CAMVID = Comparison(
    dataset=tyro.MISSING,
    weights=tyro.MISSING,
    train_images=367,
    runs=Path("runs/camvid"),
    results=Path("benchmarks/results/camvid.md"),
    labeled="12",
    more_labels=("6", "46", "all"),
    steps=1500,
    classifier_steps=750,
)

if __name__ == "__main__":
    cli.run(main, Comparison, __doc__ or "", default=CAMVID)
