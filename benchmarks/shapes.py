"""`python -m benchmarks.shapes`: all methods on the built-in pictures with one label in eight, in minutes a run."""

from pathlib import Path

from benchmarks.comparison import Comparison, main
from serving import cli

SHAPES = Comparison(
    dataset="shapes",
    weights=None,
    train_images=400,
    runs=Path("runs/shapes"),
    results=Path("benchmarks/results/shapes.md"),
    labeled="50",
    more_labels=("25", "100", "all"),
    steps=500,
    classifier_steps=500,
)

if __name__ == "__main__":
    cli.run(main, Comparison, __doc__ or "", default=SHAPES)
