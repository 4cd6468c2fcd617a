"""What Label Studio asks, and what it is answered."""

import json
from pathlib import Path

from training.annotations.rle import decode_brush

RECORDED = json.loads(Path(__file__).with_name("requests.json").read_text())
"""Requests as Label Studio 1.23.2 sent them to a backend that noted them."""

CLASSES = ("sky", "Building", "pole", "road")
"""The model's."""

BRUSH = '<BrushLabels name="tag" toName="image"><Label value="sky"/></BrushLabels>'
CONFIG = f'<View><Image name="image" value="$image"/>{BRUSH}</View>'


def send(client, name):
    recorded = RECORDED[name]
    return client.request(recorded["method"], recorded["path"], content=recorded["body"], headers=recorded["headers"])


def predict(client, *images, config=CONFIG):
    tasks = [{"id": number, "data": {"image": address}} for number, address in enumerate(images, 1)]
    return client.post("/label-studio/rec/predict", json={"tasks": tasks, "label_config": config})


def masks(prediction):
    return {
        result["value"]["brushlabels"][0]: decode_brush(
            result["value"]["rle"], result["original_height"], result["original_width"]
        )
        for result in prediction["result"]
    }
