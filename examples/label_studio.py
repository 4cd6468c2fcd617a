"""Label Studio from end to end: a model draws the masks, a person corrects them, and they train the next model.

Start both servers first. Label Studio 1.23 asks for no model on its own machine unless it is allowed to:

    ML_BLOCK_LOCAL_IP=false label-studio start --port 8080
    python -m serving.run models --label-studio-url http://localhost:8080 --label-studio-token-file token.txt

token.txt holds a token from Label Studio, Account & Settings, Personal Access Token. Then, for a folder of images:

    python examples/label_studio.py photos annotated --model http://localhost:8000/label-studio/NAME \\
        --label-studio http://localhost:8080 --token-file token.txt

It writes the folder `annotated`, with the annotations (`source`), the dataset (`dataset`) and the run (`run`). Other
flags are for training.run, such as --steps 2000.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path
from urllib.request import Request, urlopen


class LabelStudio:
    """The part of Label Studio's API that is needed here."""

    def __init__(self, url, token):
        self.url = url.rstrip("/")
        self.headers = {}
        self.headers = {"Authorization": f"Bearer {self.post('/api/token/refresh/', {'refresh': token})['access']}"}

    def get(self, path):
        with urlopen(Request(self.url + path, headers=self.headers)) as response:
            return json.load(response)

    def post(self, path, content, content_type="application/json"):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        with urlopen(Request(self.url + path, body, self.headers | {"Content-Type": content_type})) as response:
            return json.load(response)

    def upload(self, project, file):
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{file.name}"\r\n\r\n'
        body = head.encode() + file.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        self.post(f"/api/projects/{project}/import", body, f"multipart/form-data; boundary={boundary}")


def correct(results):
    """Stands in for the person, who corrects a prediction in the browser: it throws the smallest mask away."""
    return sorted(results, key=lambda result: len(result["value"]["rle"]))[1:] if len(results) > 1 else results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True, help="the address that is pasted into Label Studio")
    parser.add_argument("--label-studio", default="http://localhost:8080")
    parser.add_argument("--token-file", type=Path, required=True)
    args, flags_of_training = parser.parse_known_args()
    source = args.out / "source"
    shutil.copytree(args.images, source / "images")  # first: where OUT is there already, nothing begins
    studio = LabelStudio(args.label_studio, args.token_file.read_text().strip())

    with urlopen(args.model) as response:  # the model says which labels it knows
        config = json.load(response)["label_config"]
    project = studio.post("/api/projects", {"title": args.images.name, "label_config": config})["id"]
    files = sorted(file for file in args.images.iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    for file in files:
        studio.upload(project, file)
    studio.post("/api/ml", {"url": args.model, "project": project, "title": "kerasseg"})

    start = time.monotonic()
    everything = {"selectedItems": {"all": True, "excluded": []}}
    studio.post(f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}", everything)
    print(f"{len(files)} predictions in {time.monotonic() - start:.1f} s")

    for task in studio.get(f"/api/tasks?project={project}&page_size={len(files)}&fields=all")["tasks"]:
        for prediction in task["predictions"]:
            annotation = {"result": correct(prediction["result"]), "parent_prediction": prediction["id"]}
            studio.post(f"/api/tasks/{task['id']}/annotations/", annotation)

    exported = studio.get(f"/api/projects/{project}/export?exportType=JSON&download_all_tasks=true")
    (source / "export.json").write_text(json.dumps(exported))
    # What no mask covers is ignored: somebody threw it away, and nobody said what it is.
    run("training.import_data", source, args.out / "dataset", "--rest", "ignored")
    run("training.run", "--dataset", args.out / "dataset", "--out", args.out / "run", *flags_of_training)


def run(module, *flags):
    subprocess.run([sys.executable, "-m", module, *map(str, flags)], check=True)


if __name__ == "__main__":
    main()
