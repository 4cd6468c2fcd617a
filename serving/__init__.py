"""Model artifact to answers, over HTTP, over gRPC, and in batch jobs; without TensorFlow."""

from serving.common import process_setup  # noqa: F401  first of all
