import base64
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kerasseg.metrics import Reliability
from serving.common.images import IGNORE_COLOR, index_png, png
from serving.common.palettes import default_palette
from training import glossary, report, report_examples
from training.image_scores import ImageScores, pixels_by_class
from training.run_folder import SPLIT_FILES, Run

CLASSES = ["sky", "<b>road</b>", "car & van", "never seen"]
PALETTE = [[0, 128, 255], [128, 64, 128], [230, 200, 0], [200, 60, 20]]
VOID_TAGS = {"meta", "img", "br", "link"}


def write_run(folder, *, method="s4gan", steps=200, finished=True, result=None, example=True, **logged):
    """A run folder as `training.run` leaves it; `logged` gives quantities as functions of the step."""
    folder.mkdir(parents=True)
    config = {
        "method": method,
        "dataset": "data/streets",
        "labeled": "1/4",
        "seed": 3,
        "steps": 200,
        "crop": [48, 64],
        "fields": {"s4gan": {"gamma": 0.625, "lambda_fm": 0.1, "nesterov": False, "weights": None}},
        "classes": CLASSES,
        "palette": PALETTE,
        "versions": {"keras": "3.15.1"},
        "commit": "0123abcd",
        "command": "python -m training.run --seed 3 --dataset 'my streets'",
        "split_fingerprint": "feedface" * 8,
        "finished": finished,
        "about_method": "Learns from the labelled images, and from a discriminator.",
    }
    (folder / "config.json").write_text(json.dumps(config))

    (folder / "split").mkdir()
    names = {
        "labeled": ["a_01", "a_02"],
        "image_labeled": [],
        "unlabeled": ["b_01", "b_02", "b_03", "b_04", "<i>b</i>"],
    }
    for role, of_role in names.items():
        (folder / "split" / SPLIT_FILES[role]).write_text("".join(f"{name}\n" for name in of_role))

    curves = {"L_ce": lambda step: 2 - step / 200, "L_new": lambda step: 1.0} | logged
    rows = [{"step": s, "learning_rate": 0.01} for s in range(10, steps + 1, 10)]
    for row in rows:
        values = {name: curve(row["step"]) for name, curve in curves.items()}
        row |= {name: value for name, value in values.items() if value is not None}
        if row["step"] % 100 == 0:
            row["val_mIoU"] = row["step"] / 400
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    if finished:
        whole = {
            "mIoU": 0.5678,
            "mIoU_reference": 0.6125,
            "per_class_IoU": dict(zip(CLASSES, [0.9, 0.2034, 0.6, None], strict=True)),
            "pixel_accuracy": 0.871,
            "absent_classes": ["never seen"],
            "protocol": {
                "name": "native",
                "split": "val",
                "images": 101,
                "description": "each at its own size",
                "flip": False,
            },
            "seconds": 754.4,
            "images_per_second": 13.06,
            "peak_memory_bytes": 3 * 2**30,
            "steps": 200,
        }
        (folder / "result.json").write_text(json.dumps(whole | (result or {})))
    if example:
        write_example(folder / "examples" / "drive" / "frame_7")
    return folder


def write_example(folder, wrong=3):
    """A 6x8 image whose prediction is wrong at `wrong` of its 40 counted pixels."""
    folder.mkdir(parents=True)
    truth = np.full((6, 8), 1, np.uint8)
    truth[0] = 255
    prediction = np.full((6, 8), 1, np.uint8)
    prediction[5, :wrong] = 2
    Image.fromarray(np.full((6, 8, 3), 90, np.uint8)).save(folder / "image.png")
    (folder / "truth.png").write_bytes(index_png(truth, PALETTE))
    (folder / "prediction.png").write_bytes(index_png(prediction, PALETTE))


class Page(HTMLParser):
    """What a browser would make of a page: its text, its tags with attributes, and the tags left open."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags, self.open, self.words = [], [], []
        self.feed(self.source)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> at line {self.getpos()[0]} closes another tag"

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    def images(self):
        return {attributes["alt"]: attributes["src"] for tag, attributes in self.tags if tag == "img"}


def decoded(uri):
    head, _, content = uri.partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    return Image.open(io.BytesIO(base64.b64decode(content)))


@pytest.fixture(scope="module")
def finished_page(tmp_path_factory):
    """The report of a healthy s4gan run, read by several tests."""
    healthy = {
        "L_D": lambda s: 0.5,
        "D_real": lambda s: 0.8,
        "D_fake": lambda s: s / 400,
        "selected": lambda s: s / 500,
    }
    folder = write_run(tmp_path_factory.mktemp("runs") / "first", **healthy)
    path = report.write_report(folder)
    assert path == folder / "report.html"
    return Page(path)


def test_headline_says_how_good_and_from_how_many_labels(finished_page):
    text = finished_page.text
    assert text.startswith("s4gan on streets: mIoU 56.8 %")
    assert "Learns from the labelled images, and from a discriminator." in text
    assert "56.8 % mIoU, on 101 val images" in text
    assert "87.1 % of pixels right" in text
    assert "2 of 7 training images have their label map used" in text
    assert "200 training steps, in 12 min 34 s" in text
    assert "Note" not in text and "gate" not in text and 'role="note"' not in finished_page.source


def test_page_is_well_formed_and_needs_nothing_outside(finished_page):
    assert finished_page.open == []
    assert "http://" not in finished_page.source and "https://" not in finished_page.source
    assert not {"link", "iframe", "object"} & {tag for tag, _ in finished_page.tags}
    [script] = [attributes for tag, attributes in finished_page.tags if tag == "script"]
    own = (Path(report.__file__).parent / "report.js").read_text()
    allowed = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    assert script == {} and f"<script>{own}</script>" in finished_page.source
    [policy] = [a["content"] for _, a in finished_page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.endswith(f"script-src 'sha256-{allowed}'"), "and no other script runs"
    for _, attributes in finished_page.tags:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("data:", "#"))
    assert "url(" not in finished_page.source.replace("url(#", "").replace(own, "")


def test_names_are_text_and_never_markup(finished_page):
    assert "<b>road</b>" in finished_page.text and "car & van" in finished_page.text
    assert "<b>road" not in finished_page.source and "<i>b</i>" not in finished_page.source
    assert "<i>b</i>" in finished_page.text


def test_classes_come_best_first_with_values_and_absent_ones_apart(finished_page):
    start = finished_page.text.index("How well, class by class")
    table = finished_page.text[start : finished_page.text.index("How it learned")]
    order = ["sky 90.0 %", "car & van 60.0 %", "<b>road</b> 20.3 %", "mean (mIoU) 56.8 %"]
    positions = [table.index(entry) for entry in order]
    assert positions == sorted(positions)
    assert "In no label map and no prediction, so without a value: never seen." in table
    widths = [a["style"] for tag, a in finished_page.tags if a.get("class") == "fill"]
    assert widths == ["width: 90.0%", "width: 60.0%", "width: 20.34%"]


def test_every_logged_quantity_is_drawn_and_explained(finished_page):
    labels = [attributes["aria-label"] for tag, attributes in finished_page.tags if tag == "svg"]
    # L_new is in no glossary: drawn among the losses, without words.
    assert labels == [
        "mIoU on validation images over training steps. val_mIoU goes from 0.25 at step 100 to 0.5 at step 200.",
        "Segmentation losses over training steps. L_ce goes from 1.95 at step 10 to 1 at step 200; "
        "L_new goes from 1 at step 10 to 1 at step 200.",
        "Discriminator loss over training steps. L_D goes from 0.5 at step 10 to 0.5 at step 200.",
        "Discriminator's scores and self-training over training steps. "
        "D_real goes from 0.8 at step 10 to 0.8 at step 200; "
        "D_fake goes from 0.025 at step 10 to 0.5 at step 200; "
        "selected goes from 0.02 at step 10 to 0.4 at step 200.",
    ]
    assert ">threshold 0.625</text>" in finished_page.source
    for name in ("L_ce", "L_D", "D_real", "D_fake", "selected", "val_mIoU"):
        words = glossary.TERMS[name]
        assert f"{name}: {words.meaning}. It {words.expect}." in finished_page.text
    assert "L_new:" not in finished_page.text


def test_examples_show_image_label_map_and_prediction_in_the_classes_colours(finished_page):
    images = finished_page.images()
    assert list(images) == [
        "drive/frame_7: image",
        "drive/frame_7: label map",
        "drive/frame_7: prediction, 92 % of pixels right",  # 37 of 40; the ignored row does not count
    ]
    image, truth, prediction = (np.array(decoded(uri).convert("RGB")) for uri in images.values())
    np.testing.assert_allclose(image, 90, atol=2)
    assert truth[0, 0].tolist() == list(IGNORE_COLOR)
    assert truth[1, 0].tolist() == PALETTE[1]
    assert prediction[5, 2].tolist() == PALETTE[2] and prediction[5, 3].tolist() == PALETTE[1]
    swatches = [a["style"] for _, a in finished_page.tags if a.get("class") == "swatch"]
    assert swatches[: len(CLASSES)] == [f"background: rgb({r} {g} {b})" for r, g, b in PALETTE]


def test_split_protocol_settings_and_machine_are_told(finished_page):
    text = finished_page.text
    assert "2 of 7 training images are labelled, 5 are unlabelled." in text
    assert "fingerprint feedfacefeedface were" in text
    assert "2 labelled a_01 a_02 5 unlabelled b_01" in text
    assert "Protocol “native” on the 101 images of the val split: each at its own size." in text
    assert "Left out of the mean, because no label map and no prediction holds them: never seen." in text
    assert "flip: no." in text
    assert "The mean over only those classes of which at least one pixel is right is 61.3 %" in text
    assert "crop 48 64" in text and "s4gan.gamma 0.625" in text and "s4gan.nesterov no" in text
    assert "peak memory 3.00 GiB" in text and "speed 13.1 images/s" in text
    assert "keras 3.15.1" in text and "commit 0123abcd" in text


def test_another_protocol_is_named_beside_the_score(tmp_path):
    protocol = {"name": "multiscale_flip", "split": "val", "images": 101, "scales": [0.5, 1.0], "flip": True}
    folder = write_run(tmp_path / "run", result={"protocol": protocol}, example=False)
    result = json.loads((folder / "result.json").read_text())
    del result["mIoU_reference"]  # as in runs from before it was measured
    (folder / "result.json").write_text(json.dumps(result))
    text = Page(report.write_report(folder)).text
    assert "56.8 % mIoU, on 101 val images (multiscale flip)" in text and "scales: 0.5 1.0; flip: yes." in text
    assert "at least one pixel is right" not in text


def test_commands_repeat_export_and_segment(finished_page):
    text = finished_page.text
    assert "python -m training.run --seed 3 --dataset 'my streets'" in text
    assert "--resume" not in text
    assert "/first --out models/first" in text and "kerasseg export" in text
    assert "kerasseg segment models/first IMAGES OUTPUT" in text


def test_says_when_the_gate_lowered_miou(tmp_path):
    ungated = {"mIoU": 0.5798, "per_class_IoU": dict.fromkeys(CLASSES, 0.61), "pixel_accuracy": 0.9}
    folder = write_run(tmp_path / "run", method="mlmt", result={"without_gate": ungated})
    example = folder / "examples" / "drive" / "frame_7"
    (example / "without_gate.png").write_bytes(index_png(np.zeros((6, 8), np.uint8), PALETTE))
    (example / "reliability.png").write_bytes(png(np.full((6, 8), 128, np.uint8)))
    page = Page(report.write_report(folder))

    assert "56.8 % mIoU with gate, on 101 val images" in page.text
    assert "58.0 % mIoU without gate" in page.text
    assert (
        "The gate lowered mIoU by 1.2 points, because most classes are in most images here or because the classifier "
        "has not learned enough; prefer the ungated output."
    ) in page.text
    assert "The vertical mark on a bar shows “without gate”." in page.text
    assert "sky 90.0 % 61.0 %" in page.text
    assert "drive/frame_7: without gate, 0 % of pixels right" in page.images()
    reliability = decoded(page.images()["drive/frame_7: reliability, dark: the critic doubts it"])
    np.testing.assert_allclose(np.asarray(reliability.convert("L"), int), 128, atol=2)


def test_says_nothing_when_the_gate_helped(tmp_path):
    ungated = {"mIoU": 0.5, "per_class_IoU": dict.fromkeys(CLASSES, 0.5), "pixel_accuracy": 0.9}
    run = Run.read(write_run(tmp_path / "run", method="mlmt", result={"without_gate": ungated}))
    assert list(report.notes(run)) == []


def notes_of(folder):
    return " ".join(report.notes(Run.read(folder)))


def test_warns_of_a_discriminator_that_overpowers_at_the_end(tmp_path):
    late = {"D_real": lambda s: 0.5 if s < 150 else 0.97, "D_fake": lambda s: 0.5 if s < 150 else 0.02}
    assert "scored label maps 0.97 and predictions 0.02" in notes_of(write_run(tmp_path / "late", **late))
    early = {"D_real": lambda s: 0.97 if s < 150 else 0.8, "D_fake": lambda s: 0.02 if s < 150 else 0.2}
    assert notes_of(write_run(tmp_path / "early", **early)) == ""
    # mlmt's discriminator is done when the classifier begins.
    first_half = {name: lambda s, curve=curve: curve(2 * s) if s <= 100 else None for name, curve in late.items()}
    assert "scored label maps 0.97 and predictions 0.02" in notes_of(write_run(tmp_path / "staged", **first_half))
    other = {name.replace("D_", "D1_"): curve for name, curve in late.items()}  # dualgan's
    assert "scored label maps 0.97 and predictions 0.02" in notes_of(write_run(tmp_path / "other", **other))
    unsure = {"D_real": lambda s: 0.97, "D_fake": lambda s: 0.06}
    assert notes_of(write_run(tmp_path / "unsure", **unsure)) == ""


def test_warns_of_a_discriminator_that_guesses_at_the_end(tmp_path):
    one_sided = {"acc_real": lambda s: 0.9 if s < 150 else 1.0, "acc_fake": lambda s: 0.9 if s < 150 else 0.04}
    assert "recognised 100 % of the real label maps and 4 % of the predictions" in notes_of(
        write_run(tmp_path / "one_sided", **one_sided)
    )
    fair = {"acc_real": lambda s: 0.6, "acc_fake": lambda s: 0.6}
    assert notes_of(write_run(tmp_path / "fair", **fair)) == ""


def test_warns_of_a_critic_that_does_not_tell_right_from_wrong(tmp_path):
    blind = {"acc_right": lambda s: 1.0, "acc_wrong": lambda s: 0.5 if s < 150 else 0.01}
    assert "recognised 100 % of the right and 1 % of the wrong pixels" in notes_of(write_run(tmp_path / "1", **blind))
    coin = {"acc_right": lambda s: 0.5, "acc_wrong": lambda s: 0.5}
    assert "recognised 50 % of the right and 50 %" in notes_of(write_run(tmp_path / "coin", **coin))
    seeing = {"acc_right": lambda s: 0.95, "acc_wrong": lambda s: 0.2}
    assert notes_of(write_run(tmp_path / "seeing", **seeing)) == ""


def test_describes_what_pulls_once_for_all_terms(tmp_path):
    folder = write_run(tmp_path / "run", grad_L_ce=lambda s: 1.0, grad_L_fm=lambda s: 0.02)
    page = Page(report.write_report(folder)).text
    assert "How hard each loss pulls" in page and "grad_L_ce, grad_L_fm: norm of each loss's part" in page


def test_describes_updates_that_were_left_out(tmp_path):
    page = Page(report.write_report(write_run(tmp_path / "run", skipped_segmenter=lambda s: 0.0))).text
    assert "Updates left out" in page and "skipped_segmenter: updates of a network" in page
    assert "Other quantities" not in page


def write_diagnostics(folder):
    """As `training.run` leaves them: a critic that knows its mistakes, and three latent classes."""
    reliability = Reliability()
    reliability.add(np.repeat([0.15, 0.95], 50), np.arange(100) >= 40)
    confidence = {"softmax": reliability.summary(), "critic": reliability.summary()}
    latent = [[1, 0, 0], [0, 0.5, 0.5], [1, 0, 0], [0, 0, 1]]
    found = {"split": "val", "confidence": confidence, "latent_given_class": latent}
    found["effective_latent_classes"] = {"0.1": 3, "0.9": 2}
    curve = {"false_positive_rate": [0, 0.5, 1], "true_positive_rate": [0, 0.9, 1], "auc": 0.7654}
    found["classifiers"] = {"mean_teacher": curve, "plain": curve | {"auc": None}}
    found["corrector"] = {"mIoU": 0.345, "IoU": [0.1, 0.2, None, 0.3, 0.778], "spearman": [0.25, None, -0.5, 0.125]}
    found["training"] = {
        role: {"confidence": confidence, "corrector": {"spearman": rho}}
        for role, rho in (("labeled", [0.875, None, 0.5, 0.5]), ("unlabeled", [0.0, 0.0, 0.0, -0.625]))
    }
    (folder / "diagnostics.json").write_text(json.dumps(found))


def test_shows_whether_confidence_can_be_trusted(tmp_path):
    folder, other = write_run(tmp_path / "run"), write_run(tmp_path / "other", method="dualgan")
    page = report.write_report(folder).read_text()
    assert "Can its confidence be trusted?" not in page and not (folder / "figures/latent_classes.png").exists()
    write_diagnostics(folder)
    write_diagnostics(other)
    page = report.write_report(folder, compare=[other]).read_text()
    assert "Can its confidence be trusted?" in page and "critic of dualgan (other)" in page
    # 0.15 instead of 0.2 and 0.95 instead of 1; 10 of 60 right pixels level with the wrong ones, 50 above.
    for figure in ("0.050", "0.917", "100.0 %", "of 50 %"):
        assert figure in page, figure
    assert "softmax, unlabelled training images" in page and "rank correlation, labelled training images" in page
    assert "has 3 columns: 3 hold more than 10 % of some class, 2 hold more than 90 % of some class" in page
    for part in ("mean teacher, area 0.765", "77.8 %", "34.5 %", "-0.50", "right as it is", "0.88", "-0.62"):
        assert part in page, part
    of_curves = ("segmentation_losses", "miou_on_validation_images")
    for name in ("confidence_and_accuracy", "latent_classes", "which_classes_are_there", "the_corrector", *of_curves):
        image = Image.open(folder / f"figures/{name}.png")
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 20


CONFUSION = np.array([[800, 100, 0, 0], [0, 200, 300, 0], [50, 0, 550, 0], [0, 0, 0, 0]])


def write_image_scores(folder, confusions, names=None):
    names = tuple(names or (f"drive/{index}" for index in range(len(confusions))))
    ImageScores(names, np.stack([pixels_by_class(each) for each in confusions])).write(folder, CLASSES)


def test_shows_what_is_taken_for_what_and_how_often_classes_occur(tmp_path):
    folder = write_run(tmp_path / "run", method="supervised")
    write_diagnostics(folder)
    edit_json(folder / "diagnostics.json", confusion=CONFUSION.tolist())
    write_image_scores(folder, [CONFUSION, np.diag([100, 0, 0, 0])])
    write_example(folder / "worst" / "drive" / "0", wrong=8)
    page = Page(report.write_report(folder))
    mistakes = page.text[page.text.index("What is taken for what") :]
    assert (
        "<b>road</b> car & van 60.0 % 66.7 % sky <b>road</b> 11.1 % 22.2 % car & van sky 8.3 % 11.1 % Confusion matrix"
    ) in mistakes
    assert "sky 90.0 % 47.6 % 2" in page.text and "car & van 60.0 % 28.6 % 1" in page.text
    assert (folder / "figures" / "confusion_matrix.png").is_file()
    assert "drive/0: prediction, 80 % of pixels right" in page.images()
    assert "The worst images" in page.text


def test_says_how_far_a_score_and_a_gain_depend_on_the_images(tmp_path):
    random = np.random.default_rng(0)
    runs = []
    for name, right in (("semi", 0.8), ("base", 0.6)):
        confusions = [np.diag(random.binomial(100, right, 3).tolist() + [0]) for _ in range(20)]
        for confusion in confusions:
            confusion[[0, 1, 2], [1, 2, 0]] = 100 - np.diagonal(confusion)[:3]
        runs.append(write_run(tmp_path / name, result={"mIoU": right}))
        write_image_scores(runs[-1], confusions)
    text = Page(report.write_report(runs[0], compare=[runs[1]])).text
    assert re.search(r"mIoU would be between 6\d\.\d % and 6\d\.\d % \(95 % interval", text)
    low, high = map(
        float, re.search(r"the difference would be between \+([\d.]+) and \+([\d.]+) points", text).groups()
    )
    assert 18 < low < high < 28
    assert "These are two single runs: another seed may change the difference by several points." in text
    write_image_scores(runs[1], confusions[:5])
    text = Page(report.write_report(runs[0], compare=[runs[1]])).text
    assert "the difference would be" not in text and "These are two single runs" in text


def test_colours_that_cannot_be_read_on_a_photo_are_replaced(tmp_path):
    folder = write_run(tmp_path / "run")
    edit_json(folder / "config.json", palette=[[0, 128, 255], [128, 64, 128], [128, 66, 128], [8, 0, 0]])
    page = Page(report.write_report(folder))
    swatches = [a["style"] for _, a in page.tags if a.get("class") == "swatch"]
    usual = default_palette(4, background=False)
    assert swatches[:4] == [f"background: rgb({r} {g} {b})" for r, g, b in usual]
    drawn = np.array(decoded(page.images()["drive/frame_7: label map"]).convert("RGB"))
    assert drawn[1, 0].tolist() == list(usual[1])


def test_maps_lie_over_their_image_and_a_click_enlarges_them(tmp_path, browser):
    """In a browser: the slider covers the image, the line divides two maps."""
    folder = write_run(tmp_path / "run")
    page = browser.new_page(viewport={"width": 1000, "height": 800})
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(report.write_report(folder).as_uri())
    label_map = page.get_by_role("button", name="drive/frame_7: label map")

    def color(x, y):
        shot = np.array(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(int)
        return shot[round(y), round(x)]

    def middle(locator, across=0.5):
        locator.scroll_into_view_if_needed()
        box = locator.bounding_box()
        return color(box["x"] + across * box["width"], box["y"] + 0.5 * box["height"])

    np.testing.assert_allclose(middle(label_map), 0.65 * np.array(PALETTE[1]) + 0.35 * 90, atol=4)
    page.get_by_label("How far maps cover the image").first.fill("0")
    np.testing.assert_allclose(middle(label_map), 90, atol=4)

    page.get_by_role("button", name="drive/frame_7: prediction").focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("How far maps cover the image").fill("100")
    dialog.get_by_label("Left of the line").select_option("label map")
    stack = dialog.locator(".stack")
    box = stack.bounding_box()
    y = box["y"] + 0.95 * box["height"]  # the last row, whose first three of eight pixels are predicted wrongly
    assert color(box["x"] + 0.2 * box["width"], y).tolist() == PALETTE[1], "left of the line the label map"
    dialog.get_by_label("Where the two maps meet").fill("0")
    assert color(box["x"] + 0.2 * box["width"], y).tolist() == PALETTE[2], "right of it the prediction"
    page.keyboard.press("Escape")
    assert not dialog.is_visible() and complaints == []
    page.close()


def test_warns_when_nothing_was_ever_selected(tmp_path):
    assert "Nothing was ever selected" in notes_of(write_run(tmp_path / "never", selected=lambda s: 0.0))
    assert notes_of(write_run(tmp_path / "once", selected=lambda s: 0.1 * (s == 50))) == ""


def test_warns_when_a_critic_lets_everything_pass(tmp_path):
    everything = {"selected": lambda s: 1.0 if s > 30 else 0.2}
    critic = {"acc_real": lambda s: 0.9, "acc_fake": lambda s: 0.9}
    assert "Nearly everything is selected" in notes_of(write_run(tmp_path / "critic", **everything, **critic))
    assert notes_of(write_run(tmp_path / "without", **everything)) == ""
    assert notes_of(write_run(tmp_path / "early", selected=lambda s: 0.2 if s > 30 else 1.0, **critic)) == ""


def test_unfinished_run_without_result_examples_or_discriminator(tmp_path):
    folder = write_run(tmp_path / "half", method="supervised", steps=120, finished=False, example=False)
    page = Page(report.write_report(folder))
    assert "This run is unfinished at step 120 of 200." in page.text
    assert "25.0 % mIoU on val images at step 100, the last check while training" in page.text
    assert "120 of 200 training steps" in page.text
    assert page.images() == {}
    for absent in ("Example images", "class by class", "How it was measured", "kerasseg export"):
        assert absent not in page.text
    assert "training.run --seed 3 --dataset 'my streets' --resume" in page.text
    assert len([tag for tag, _ in page.tags if tag == "svg"]) == 2


def test_finished_takes_both_the_mark_and_the_result(tmp_path):
    folder = write_run(tmp_path / "run")
    assert Run.read(folder).finished
    edit_json(folder / "config.json", finished=False)
    assert not Run.read(folder).finished
    edit_json(folder / "config.json", finished=True)
    (folder / "result.json").unlink()
    assert not Run.read(folder).finished


def test_a_run_killed_before_its_first_log_and_mid_line(tmp_path):
    folder = write_run(tmp_path / "run", steps=20, finished=False)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 30, "L_c')
    assert Run.read(folder).last_step == 20
    (folder / "metrics.jsonl").unlink()
    assert "unfinished at step 0 of 200" in Page(report.write_report(folder)).text


def test_a_resumed_run_counts_the_later_line(tmp_path):
    folder = write_run(tmp_path / "run", steps=30, finished=False)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 20, "L_ce": 7.0, "L_new": NaN}\n{"step": 40, "L_ce": 8.0}\n')
    run = Run.read(folder)
    assert run.curve("L_ce") == ([10, 20, 30, 40], [1.95, 7.0, 1.85, 8.0])
    assert run.curve("L_new") == ([10, 30], [1.0, 1.0])


def test_compares_with_a_run_on_the_same_split(tmp_path):
    folder = write_run(tmp_path / "semi")
    other = write_run(tmp_path / "base", method="supervised", result={"mIoU": 0.5}, example=False)
    write_example(other / "examples" / "drive" / "frame_7", wrong=8)
    page = Page(report.write_report(folder, compare=[other]))
    assert "50.0 % mIoU of supervised (base) 56.8 % mIoU, on 101 val images" in page.text
    assert "6.8 points above supervised (base), which reached 50.0 %." in page.text
    assert "drive/frame_7: supervised (base), 80 % of pixels right" in page.images()
    assert "mean (mIoU) 56.8 % 50.0 %" in page.text
    assert ">val_mIoU of supervised (base)</text>" in page.source
    assert f"kerasseg report {folder} --compare {other}" in page.text
    assert "another split" not in page.text
    back = Page(report.write_report(other, compare=[folder]))
    assert "6.8 points below s4gan (semi), which reached 56.8 %." in back.text


def test_the_first_figures_are_supervised_ungated_gated_and_so_are_the_images(tmp_path):
    ungated = {"mIoU": 0.54, "per_class_IoU": dict.fromkeys(CLASSES, 0.54), "pixel_accuracy": 0.8}
    student = ungated | {"mIoU": 0.53}
    folder = write_run(tmp_path / "first", method="mlmt", result={"student": student, "without_gate": ungated})
    other = write_run(tmp_path / "first_supervised", method="supervised", result={"mIoU": 0.5})
    example = folder / "examples" / "drive" / "frame_7"
    for variant in ("student", "without_gate"):
        (example / f"{variant}.png").write_bytes((example / "prediction.png").read_bytes())
    page = Page(report.write_report(folder, compare=[other]))
    figures = page.text[page.text.index("50.0 %") :]
    assert figures.startswith(
        "50.0 % mIoU of supervised (first_supervised) 54.0 % mIoU without gate "
        "56.8 % mIoU with gate, on 101 val images 53.0 % mIoU of the last weights (student)"
    )
    titles = [name.split(": ")[1].split(", ")[0] for name in page.images()]
    assert titles == ["image", "label map", "supervised (first_supervised)", "without gate", "with gate", "student"]


def edit_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_says_when_a_compared_run_has_another_split(tmp_path):
    folder, other = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    edit_json(other / "config.json", split_fingerprint="0" * 64)
    page = Page(report.write_report(folder, compare=[other]))
    assert "s4gan (b) was trained on another split" in page.text


def test_refuses_to_compare_what_cannot_be(tmp_path):
    folder, other = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    edit_json(other / "result.json", protocol={"name": "native", "split": "test", "images": 50})
    with pytest.raises(ValueError, match="was evaluated as .*test.* evaluate both in the same way"):
        report.write_report(folder, compare=[other])
    edit_json(other / "config.json", classes=["cat"], palette=[[0, 0, 0]])
    with pytest.raises(ValueError, match=r"has 1 classes \(cat\), this run has 4"):
        report.write_report(folder, compare=[other])
    assert not (folder / "report.html").exists()


def test_mistakes_are_told_in_words(tmp_path):
    with pytest.raises(ValueError, match="nowhere is not a run folder: no config.json"):
        report.write_report(tmp_path / "nowhere")

    folder = write_run(tmp_path / "run")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([lines[0], "oops", *lines[1:]]))
    with pytest.raises(ValueError, match="metrics.jsonl: expected a JSON object with a step .* line 2 is 'oops'"):
        report.write_report(folder)
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    (folder / "result.json").write_text("[]")
    with pytest.raises(ValueError, match="result.json must hold one JSON object, it holds a list"):
        report.write_report(folder)
    (folder / "config.json").write_text('{"method": "s4gan"}')
    with pytest.raises(ValueError, match="config.json lacks dataset, steps, classes, palette"):
        report.write_report(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json does not hold JSON"):
        report.write_report(folder)


def test_wide_images_are_reduced_and_examples_limited(tmp_path):
    folder = write_run(tmp_path / "run", example=False)
    for number in range(report_examples.MAX_EXAMPLES + 2):
        write_example(folder / "examples" / f"frame_{number:02}")
    wide = folder / "examples" / "frame_00"
    Image.fromarray(np.zeros((600, 800, 3), np.uint8)).save(wide / "image.png")
    page = Page(report.write_report(folder))
    assert "12 of 14 example images." in page.text
    assert len(page.images()) == 3 * report_examples.MAX_EXAMPLES
    assert decoded(page.images()["frame_00: image"]).size == (640, 480)


def command(*arguments, **environment):
    # A command of its own shows that no part of it needs TensorFlow.
    code = (
        "import runpy, sys; sys.argv[0] = 'training.report'; "
        "sys.modules['tensorflow'] = sys.modules['keras'] = None; "
        "runpy.run_module('training.report', run_name='__main__')"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=os.environ | environment
    )


def test_command_line(tmp_path):
    folder, other = write_run(tmp_path / "run"), write_run(tmp_path / "other")
    done = command(folder, "--compare", other)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"report": str(folder / "report.html")}
    assert "As good as s4gan (other), which reached 56.8 %." in Page(folder / "report.html").text

    wrong = command(tmp_path, HOME="/proc/none", MPLCONFIGDIR="")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: ") and wrong.stderr.count("\n") == 1
    assert "is not a run folder" in wrong.stderr
