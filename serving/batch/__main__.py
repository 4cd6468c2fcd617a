"""`python -m serving.batch MODELS/name INPUT OUTPUT`; see `serving.batch.command`."""

from serving.batch.command import BatchConfig, main
from serving.common import cli

if __name__ == "__main__":
    cli.run(main, BatchConfig, "Segments images with an exported model, without TensorFlow.")
