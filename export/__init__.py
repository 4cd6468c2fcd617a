"""Run folder to model artifact: ONNX, SavedModel and the report that proves them equal."""
