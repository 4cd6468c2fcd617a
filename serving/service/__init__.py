"""What HTTP and gRPC share: a request's way to its answer, limits, failures, the V2 protocol, metrics, logs."""
