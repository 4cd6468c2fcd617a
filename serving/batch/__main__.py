"""`python -m serving.batch MODELS/name INPUT OUTPUT`; see `serving.batch.command`."""

from serving.batch.command import COMMAND

if __name__ == "__main__":
    COMMAND.run()
