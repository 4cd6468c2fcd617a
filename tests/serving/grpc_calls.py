"""gRPC calls to the server, in Triton's own messages."""

import contextlib

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

SERVICE = "inference.GRPCInferenceService"
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 3), np.uint8)


@contextlib.contextmanager
def calling(server, service=SERVICE):
    """Yields `call(method, message, ...)`, which returns the call under way: a future of the answer."""
    with grpc.insecure_channel(server.grpc_address) as channel:

        def call(method, message=b"", **options):
            stub = channel.unary_unary(f"/{service}/{method}")
            serialized = message if isinstance(message, bytes) else message.SerializeToString()
            return stub.future(serialized, **{"timeout": 600} | options)

        yield call


def infer_request(images_NHWC=IMAGES, raw=True, model_name="toy", **changes):
    """With fields of its input changed."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": images_NHWC.shape}
    request = service_pb2.ModelInferRequest(model_name=model_name, inputs=[tensor | changes])
    if raw:
        request.raw_input_contents.append(images_NHWC.tobytes())
    else:
        request.inputs[0].contents.uint_contents.extend(images_NHWC.ravel().tolist())
    return request
