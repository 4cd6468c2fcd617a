"""The server's gRPC side. Needs the extra `grpc`."""
