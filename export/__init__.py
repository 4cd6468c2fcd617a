"""From a run folder to a model artifact: ONNX, SavedModel and the report that proves them equal."""

import serving  # noqa: F401  first of all: it starts the process
