"""Starts TensorFlow: with oneDNN, and without its notes about missing GPUs on the user's screen."""

import contextlib
import os


@contextlib.contextmanager
def silenced():
    """Drops what is written to file descriptor 2 meanwhile: TensorFlow writes there before its settings apply."""
    try:
        kept = os.dup(2)
    except OSError:  # closed: nothing can be written
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# By itself TensorFlow uses oneDNN on newer CPUs only (those with VNNI, bfloat16 or AMX instructions). oneDNN has the
# gradient that `AtrousConv2D` asks for, and is faster.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
with silenced():
    import tensorflow as tf

    tf.config.list_physical_devices()  # looks for GPUs, and so gets that said too
