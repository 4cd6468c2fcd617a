"""The page, in a real browser, with a model whose answers are known: labels are red // 64, maps are green / 255."""

import io
import re

import httpx
import numpy as np
import pytest
from PIL import Image, ImageCms

from serving.http import page as served
from tests.serving.images import encoded, encoded_image
from tests.serving.servers import clients, running, until
from tests.serving.toy_model import CLASSES, PALETTE, write_toy_model

READING = "willReadFrequently"
"""What the browser says of a canvas that a test reads again and again."""


@pytest.fixture(scope="module")
def models(models):
    """`toy`, and `judged`, which has reliability."""
    write_toy_model(models / "judged", 2, maps=("confidence", "reliability"), name="judged")
    return models


@pytest.fixture
def open_page(browser):
    """Opens a server's page; at the end, nothing else was asked for and nothing was complained about."""
    contexts, asked, complaints = [], [], []

    def open_page(server, expected_complaint=None, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append((server.url, request.url)))
        page.on("pageerror", lambda error: complaints.append(str(error)))

        def listen(message):
            if message.type in ("error", "warning") and not re.search(expected_complaint or READING, message.text):
                complaints.append(message.text)

        page.on("console", listen)
        page.goto(server.url)
        page.wait_for_selector("#model:enabled, #error:not([hidden]), #locked[open]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints
    assert all(url.startswith((f"{own}/", "blob:")) for own, url in asked), asked


@pytest.fixture
def page(open_page, server):
    return open_page(server)


def scene():
    """An array of four quadrants, of the classes 0 1 / 2 3 and of maps of 20, 40, 60 and 80 %."""
    image_HWC = np.zeros((40, 60, 3), np.uint8)
    for label, rows, columns in ((0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1)):
        image_HWC[20 * rows :, 30 * columns :] = (64 * label + 32, 51 * (label + 1), 100)
    image_HWC[20:, :30] = (160, 153, 100)
    return image_HWC


def choose(page, contents, name="scene.png"):
    page.set_input_files("#file", {"name": name, "mimeType": "", "buffer": contents})


def segmented(page):
    until(lambda: page.evaluate("document.getElementById('busy').hidden && !document.getElementById('panel').hidden"))


def choose_scene(page):
    choose(page, encoded(Image.fromarray(scene())))
    segmented(page)


def canvas_of(page):
    """What the canvas shows, uint8 (H,W,3)."""
    height, width, values = page.evaluate(
        """() => { const {width, height} = document.getElementById("canvas");
        const pixels = document.getElementById("canvas").getContext("2d").getImageData(0, 0, width, height);
        return [height, width, Array.from(pixels.data)]; }"""
    )
    return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]


def set_opacity(page, percent):
    page.locator("#opacity").fill(str(percent))


def assert_near(found, expected):
    np.testing.assert_allclose(found.astype(int), np.asarray(expected).astype(int), atol=1)


def pixel_place(page, x, y):
    """Where on the screen a pixel of the scene is."""
    box = page.locator("#canvas").bounding_box()
    scale = min(box["width"] / 60, box["height"] / 40)
    left, top = box["x"] + (box["width"] - 60 * scale) / 2, box["y"] + (box["height"] - 40 * scale) / 2
    return left + (x + 0.5) * scale, top + (y + 0.5) * scale


def test_an_overlay_whose_opacity_the_slider_sets(page):
    choose_scene(page)
    image_HWC = scene()
    colors_HWC = np.array(PALETTE)[image_HWC[..., 0] // 64]
    assert_near(canvas_of(page), 0.4 * image_HWC + 0.6 * colors_HWC)
    set_opacity(page, 100)
    assert_near(canvas_of(page), colors_HWC)
    set_opacity(page, 0)
    assert_near(canvas_of(page), image_HWC)
    assert page.locator("#percent").inner_text() == "0 %"


def test_one_inference_an_image(page, server):
    def inferences():
        metrics = httpx.get(f"{server.url}/metrics").text
        return sum(float(n) for n in re.findall(r"^nv_inference_request_success\S* (\S+)$", metrics, re.M))

    before = inferences()
    choose_scene(page)
    page.check("#shown [value=confidence]", force=True)
    with page.expect_download():
        page.click("#download")
    assert inferences() == before + 1


def test_areas_and_latency(page):
    choose_scene(page)
    rows = page.locator("#legend li")
    assert sorted(rows.all_inner_texts()) == sorted(f"{name}\n25.0 %" for name in CLASSES)
    assert rows.first.get_attribute("title") == "600 pixels"
    color = (
        page.locator("#legend li", has_text="bright")
        .locator("i")
        .evaluate("it => getComputedStyle(it).backgroundColor")
    )
    assert color == "rgb(0, 0, 128)"
    facts = page.locator("#facts").inner_text()
    assert re.fullmatch(r"judged, version 2, answered in \d+ ms, \d+ ms of it in the model\.\n60×40 pixels\.", facts)


def test_the_pixel_under_the_pointer_is_read(page):
    choose_scene(page)
    page.mouse.move(*pixel_place(page, 29, 20))
    assert page.locator("#readout").inner_text().split("\n")[-4:] == [
        "light", "confidence 60.0 %", "reliability 60.0 %", "at 29, 20",
    ]  # fmt: skip
    assert page.locator(".pointed .name").inner_text() == "light"
    page.mouse.move(*pixel_place(page, 30, 19))
    assert "dim" in page.locator("#readout").inner_text()


def test_maps_where_the_model_has_them(page):
    choose_scene(page)
    set_opacity(page, 100)
    for name in ("confidence", "reliability"):
        page.check(f"#shown [value={name}]", force=True)
        colors = canvas_of(page)
        # Values of 20 % and 80 % on the ramp of five colours.
        assert_near(colors[0, 0], 0.2 * np.array((68, 1, 84)) + 0.8 * np.array((59, 82, 139)))
        assert_near(colors[-1, -1], 0.8 * np.array((94, 201, 98)) + 0.2 * np.array((253, 231, 37)))
        assert page.locator("#mean").inner_text() == f"{name.capitalize()}, 50.0 % on average"
    page.select_option("#model", "toy")
    until(lambda: page.evaluate("document.getElementById('facts').textContent.startsWith('toy')"))
    assert page.locator("#shown label").all_inner_texts() == ["Classes", "Confidence"]
    assert_near(canvas_of(page)[0, 0], PALETTE[0])


def test_the_mask_is_the_one_of_the_endpoint(page, server):
    contents = encoded_image(34, 46)
    choose(page, contents, "a photo.of me.png")
    segmented(page)
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "a photo.of me-labels.png"
    expected = httpx.post(f"{server.url}/v1/segment/judged", content=contents).content
    with Image.open(download.value.path()) as own, Image.open(io.BytesIO(expected)) as theirs:
        assert own.mode == theirs.mode == "P"
        np.testing.assert_array_equal(own, theirs)
        colors = 3 * len(PALETTE)
        assert own.getpalette()[:colors] == theirs.getpalette()[:colors]


def test_a_photo_taken_sideways_is_shown_and_segmented_upright(page):
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = Image.fromarray(scene()).transpose(Image.Transpose.ROTATE_90)
    choose(page, encoded(sideways, "JPEG", quality=100, subsampling=0, exif=exif), "photo.jpg")
    segmented(page)
    set_opacity(page, 100)
    shown = canvas_of(page)
    assert shown.shape == (40, 60, 3)
    corners = [shown[5, 5], shown[5, -5], shown[-5, 5], shown[-5, -5]]
    np.testing.assert_array_equal(corners, PALETTE)


def test_pixels_are_read_without_the_colour_profile_as_the_endpoint_does(page):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"....").replace(b"gXYZ", b"rXYZ").replace(b"....", b"gXYZ")
    choose(page, encoded(Image.fromarray(scene()), icc_profile=swapped))
    segmented(page)
    set_opacity(page, 0)
    assert_near(canvas_of(page), scene())


def test_a_large_image_is_scaled_and_says_so(page):
    choose(page, encoded(Image.fromarray(scene()).resize((2400, 1600), Image.Resampling.NEAREST)))
    segmented(page)
    assert "2400×1600 pixels, scaled to 1254×836." in page.locator("#facts").inner_text()
    assert page.evaluate("[canvas.width, canvas.height]") == [1254, 836]
    assert sorted(page.locator("#legend .share").all_inner_texts()) == ["25.0 %"] * 4


def test_what_is_no_image(page):
    choose_scene(page)
    choose(page, b"hello", "notes.txt")
    page.wait_for_selector("#error", state="visible")
    assert page.locator("#error").inner_text() == (
        "notes.txt is not an image that this browser can read: choose a JPEG, PNG or WebP."
    )
    assert page.locator("#legend li").count() == 4  # the image before it is still there
    choose_scene(page)
    page.wait_for_selector("#error", state="hidden")  # the panel is there from before, so `segmented` may not wait


def test_a_dropped_file(page):
    drop = """contents => { const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(contents)], "dropped.png"));
        document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true})); }"""
    page.evaluate(drop, list(encoded(Image.fromarray(scene()))))
    segmented(page)
    assert page.locator("#canvas").get_attribute("aria-label") == "dropped.png, 60 by 40 pixels"


def test_the_keyboard_reaches_everything(page):
    def tab_to(selector):
        for _ in range(20):
            page.keyboard.press("Tab")
            if page.locator(selector).evaluate("it => it === document.activeElement"):
                return
        raise AssertionError(f"Tab does not reach {selector}")

    tab_to("#file")
    tab_to("#sample")
    page.keyboard.press("Enter")
    segmented(page)
    assert "384×288 pixels" in page.locator("#facts").inner_text()
    tab_to("[name=shown]:checked")
    page.keyboard.press("ArrowRight")
    assert "Confidence" in page.locator("#mean").inner_text()
    tab_to("#opacity")
    page.keyboard.press("End")
    assert page.locator("#percent").inner_text() == "100 %"
    tab_to("#download")
    with page.expect_download():
        page.keyboard.press("Enter")
    tab_to("#canvas")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowUp")
    assert "at 193, 124" in page.locator("#readout").inner_text()


def test_a_phone(open_page, server):
    page = open_page(server, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    choose_scene(page)
    page.touchscreen.tap(*pixel_place(page, 45, 30))
    assert "bright" in page.locator("#readout").inner_text()
    for shown in ("labels", "confidence"):
        page.check(f"#shown [value={shown}]", force=True)
        assert page.evaluate("[document.documentElement.scrollWidth, visualViewport.scale]") == [360, 1]
        assert page.locator("#download").bounding_box()["width"] < 360
    assert page.locator("#panel").bounding_box()["y"] > page.locator("#canvas").bounding_box()["y"]


def test_too_large_for_the_server_and_gone(open_page, toy_model):
    with running(toy_model.parent, max_pixels=1000) as small:
        page = open_page(small, "413|Failed to load|ERR_")
        choose(page, encoded_image(40, 60))
        page.wait_for_selector("#error", state="visible")
        assert "too large for this server: choose a smaller one. It says: image:" in page.locator("#error").inner_text()
    page.click("#again")
    until(lambda: page.evaluate("document.getElementById('error').textContent.includes('does not answer')"))


def test_busy_and_then_not(open_page, toy_model, gate):
    with running(toy_model.parent, max_queue=1, batch_size=1, warm_up=()) as server, clients(server) as post:
        page = open_page(server, "503")
        waiting = [post("/v1/segment/toy", encoded_image())]
        until(lambda: gate.batches)
        waiting.append(post("/v1/segment/toy", encoded_image()))
        until(lambda: server.repository.get("toy").full)
        choose(page, encoded(Image.fromarray(scene())))
        page.wait_for_selector("#error", state="visible")
        assert "The server is busy: try again in a moment." in page.locator("#error").inner_text()
        gate.open()
        assert all(answer.result().status_code == 200 for answer in waiting)
        page.click("#again")
        segmented(page)
        assert page.locator("#error").is_hidden()


def test_the_token_is_asked_for_and_sent_from_then_on(open_page, toy_model, tmp_path):
    (tmp_path / "token").write_text("secret")
    with running(toy_model.parent, token_file=tmp_path / "token") as server:
        page = open_page(server, "401")
        page.fill("#token", "wrong")
        page.keyboard.press("Enter")
        until(lambda: page.evaluate("document.getElementById('locked-text').textContent.includes('refused')"))
        page.fill("#token", "secret")
        page.keyboard.press("Enter")
        page.wait_for_selector("#model:enabled")
        choose_scene(page)
        assert page.locator("#legend li").count() == 4

        page = open_page(server, "401")
        page.keyboard.press("Escape")
        page.wait_for_selector("#error", state="visible")
        assert "only those who have its token" in page.locator("#error").inner_text()


def test_headers(server):
    for path in ("/", *(f"/page/{name}" for name in served.FILES if name != "index.html")):
        response = httpx.get(server.url + path)
        assert response.status_code == 200
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
        assert response.headers["cache-control"] == "no-cache"
        again = httpx.get(server.url + path, headers={"If-None-Match": f'"other", W/{response.headers["etag"]}'})
        assert (again.status_code, again.content) == (304, b"")
