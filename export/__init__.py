"""From a run folder to a model artifact: ONNX, SavedModel and the report that proves them equal."""

from serving.common import process_setup  # noqa: F401  first of all
