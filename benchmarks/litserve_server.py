"""A usual LitServe server: JPEG in, index PNG out, dynamic batches. `benchmarks.serving` measures it.

python -m benchmarks.litserve_server GRAPH PORT PROVIDER BATCH_SIZE WORKERS THREADS
"""

import io
import sys

import litserve
import numpy as np
import onnxruntime
from fastapi import Response
from PIL import Image


class Segment(litserve.LitAPI):
    def __init__(self, graph: str, provider: str, threads: int, **settings):
        super().__init__(**settings)
        self.graph, self.provider, self.threads = graph, provider, threads

    def setup(self, device):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        providers = ["CPUExecutionProvider"]
        if self.provider == "cuda":
            onnxruntime.preload_dlls()
            providers.insert(0, "CUDAExecutionProvider")
        self.session = onnxruntime.InferenceSession(self.graph, options, providers)

    def decode_request(self, request):
        return np.asarray(Image.open(request["image"].file).convert("RGB"))

    def predict(self, images):
        images_NHW3 = images if images.ndim == 4 else images[None]
        [labels_NHW] = self.session.run(["labels"], {"image": images_NHW3})
        return labels_NHW if images.ndim == 4 else labels_NHW[0]

    def encode_response(self, labels_HW):
        file = io.BytesIO()
        Image.fromarray(labels_HW).save(file, "PNG")
        return Response(file.getvalue(), media_type="image/png")


if __name__ == "__main__":
    graph, port, provider, batch_size, workers, threads = sys.argv[1:]
    api = Segment(graph, provider, int(threads), max_batch_size=int(batch_size), batch_timeout=0.001)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=int(workers), timeout=60)
    server.run(host="127.0.0.1", port=int(port), log_level="warning", generate_client_file=False)
