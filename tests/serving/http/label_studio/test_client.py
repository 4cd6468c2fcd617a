"""Where images are fetched from, and how."""

import asyncio
import base64
import contextlib
import socketserver
import threading
import time

import numpy as np
import pytest

from serving.http.label_studio import client as label_studio_client
from serving.model.batcher import QueueFull
from serving.service.failures import BadRequest
from tests.serving.http.label_studio.requests import CONFIG, masks, predict
from tests.serving.http_calls import client_of, error_of
from tests.serving.images import encoded_image, expected_labels
from tests.serving.label_studio import LEGACY, PERSONAL, HangingLabelStudio, label_studio
from tests.serving.servers import running


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://169.254.169.254/data/upload/1/a.jpg", "its image is at http://169.254.169.254/data/upload/1/a.jpg, and"
         " only images of {url} are fetched"),
        ("//169.254.169.254/data/upload/1/a.jpg", "only images of {url} are fetched"),
        ("{url}@169.254.169.254/data/upload/1/a.jpg", "only images of {url} are fetched"),
        ("http://user@{netloc}/data/upload/1/a.jpg", "only images of {url} are fetched"),
        ("http://localhost:99999/data/upload/1/a.jpg", "only images of {url} are fetched"),
        ("file:///data/upload/1/a.jpg", "only images of {url} are fetched"),
        ("{url}/api/users", "is no address of an image in Label Studio"),
        ("/data/upload/../../api/users", "is no address of an image in Label Studio"),
        ("/data/upload/%2e%2e/%2e%2e/api/users", "is no address of an image in Label Studio"),
        ("/data/upload/1/..\\..\\api", "is no address of an image in Label Studio"),
        ("/tasks/1/delete/", "is no address of an image in Label Studio"),
        ("photo.jpg", "is no address of an image in Label Studio"),
        (7, "expected the address of an image in image, got 7"),
        ("data:image/png,abc", "an image in its task is not in base64"),
        ("data:image/png;base64,a", "an image in its task is not in base64"),
    ],
)  # fmt: skip
def test_only_images_of_label_studio_are_fetched(client, studio, asked, address, said):
    netloc = studio.url.removeprefix("http://")
    if isinstance(address, str):
        address = address.format(url=studio.url, netloc=netloc)
    assert said.format(url=studio.url) in error_of(predict(client, address), 400)
    assert studio.asked == []


def test_setup_names_no_address(client, asked):
    """A stranger may call it, too."""
    with label_studio() as other:
        body = {"schema": CONFIG, "hostname": other.url, "access_token": LEGACY}
        assert client.post("/label-studio/rec/setup", json=body).status_code == 200
        other.answers["/data/upload/1/a.png"] = (200, {}, encoded_image())
        assert predict(client, "/data/upload/1/a.png").status_code == 400
        assert other.asked == []
    assert asked() == ["/data/upload/1/a.png"]


def test_redirects_stay_within_label_studio(client, studio, asked):
    with label_studio() as other:
        other.answers["/data/upload/1/a.png"] = (200, {}, encoded_image())
        cloud = "s3://bucket/dir/a b.png"
        target = f"/tasks/1/presign/?fileuri={base64.urlsafe_b64encode(cloud.encode()).decode()}"
        studio.answers[target] = (302, {"Location": f"{other.url}/data/upload/1/a.png"}, b"")
        assert "redirects /tasks/1/presign/" in (said := error_of(predict(client, cloud), 400))
        assert "switch off pre-signed URLs" in said
        assert other.asked == []
    studio.answers["/data/upload/1/a.png"] = (200, {}, encoded_image())
    studio.answers[target] = (307, {"Location": f"{studio.url}/data/upload/1/a.png"}, b"")
    assert "score" in predict(client, cloud).json()["results"][0]
    studio.answers[target] = (302, {"Location": "/api/users"}, b"")
    assert "/api/users is no address of an image" in error_of(predict(client, cloud), 400)
    studio.answers[target] = (302, {"Location": target}, b"")
    assert "more than 2 times" in error_of(predict(client, cloud), 400)
    assert "/api/users" not in asked()


@pytest.mark.parametrize(
    "address",
    [
        "/data/local-files/?d=shots/loc%20al%2B%C3%BC.jpg",
        "/data/upload/4/4567acd6-Stra%C3%9Fe_%C3%BC.jpg",
        "/storage-data/uploaded/?filepath=upload/1/a.jpg",
    ],
)
def test_addresses_go_out_as_they_came(client, studio, asked, address):
    studio.answers[address] = (200, {}, encoded_image())
    assert "score" in predict(client, f"{studio.url}{address}").json()["results"][0]
    assert "score" in predict(client, address).json()["results"][0]
    assert asked() == [address] * 2
    predict(client, "/data/upload/1/ü b\r\nX: y")
    assert asked()[-1] == "/data/upload/1/%C3%BC%20bX:%20y"


def test_tokens(models, studio, tmp_path):
    def flags(token):
        (tmp_path / "token").write_text(token)
        return {"label_studio_url": studio.url, "label_studio_token_file": tmp_path / "token"}

    good = "/data/upload/1/e8a1e3ac-0001TP_006720.jpg"
    with running(models, **flags(LEGACY)) as server, client_of(server) as client:
        studio.asked.clear()
        assert predict(client, good).status_code == 200
        assert studio.asked == [("GET", good, f"Token {LEGACY}")]
    with running(models, **flags(PERSONAL)) as server, client_of(server) as client:
        studio.asked.clear()
        assert [predict(client, good).status_code for _ in range(2)] == [200, 200]
        assert [path for _, path, _ in studio.asked] == ["/api/token/refresh/", good, good]
        studio.accepted.clear()  # it has forgotten what it gave
        assert predict(client, good).status_code == 200
        assert [path for _, path, _ in studio.asked[3:]] == [good, "/api/token/refresh/", good]
        studio.accepted.append(f"Token {LEGACY}")
    for wrong, said in (("eyJ.d3Jvbmc.x", "answers 401 to the token"), ("wrong", "refuses the token")):
        with running(models, **flags(wrong)) as server, client_of(server) as client:
            answer = client.post("/label-studio/rec/setup", json={"schema": CONFIG})
            assert f"{studio.url} {said} of --label-studio-token-file" in error_of(answer, 400)


def test_a_label_studio_below_a_path(models, studio, tmp_path):
    (tmp_path / "token").write_text(LEGACY)
    flags = {"label_studio_url": f"{studio.url}/ls/", "label_studio_token_file": tmp_path / "token"}
    image = "/data/upload/1/a.png"
    with running(models, **flags) as server, client_of(server) as client:
        studio.answers[f"/ls{image}"] = (200, {}, encoded_image())
        studio.asked.clear()
        for address in (image, f"/ls{image}", f"{studio.url}/ls{image}"):
            assert predict(client, address).status_code == 200
        assert studio.images_asked() == [f"/ls{image}"] * 3
        for other in (image, f"/lso{image}", f"/{image}"):
            said = f"only images of {studio.url}/ls are fetched"
            assert said in error_of(predict(client, f"{studio.url}{other}"), 400)
        assert len(studio.images_asked()) == 3
        assert "is no address of an image" in error_of(predict(client, "/ls/api/users"), 400)


@pytest.mark.parametrize(
    ("headers", "body", "said"),
    [
        ({"Content-Length": "9", "Connection": "close"}, b"short", "it ends its answer too early"),
        ({"Content-Length": "x"}, b"", "its answer is not HTTP"),
    ],
)
def test_answers_that_are_not_whole(client, studio, headers, body, said):
    studio.answers["/data/upload/1/part.png"] = (200, headers, body)
    assert f"{studio.url} cannot be reached: {said}" in error_of(predict(client, "/data/upload/1/part.png"), 400)


def test_answers_in_chunks_and_until_the_connection_ends(client, studio):
    contents = encoded_image()
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (contents[:50], contents[50:])) + b"0\r\n\r\n"
    studio.answers["/data/upload/1/chunks.png"] = (200, {"Content-Length": "", "Transfer-Encoding": "chunked"}, chunks)
    studio.answers["/data/upload/1/end.png"] = (200, {"Content-Length": "", "Connection": "close"}, contents)
    for name in ("chunks", "end"):
        [result] = predict(client, f"/data/upload/1/{name}.png").json()["results"]
        np.testing.assert_array_equal(masks(result)["sky"], expected_labels(contents) == 0)


def answering(*pieces):
    """The address of a Label Studio that says these bytes to everyone, one after the other."""

    class Says(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(2**16)
            for number, piece in enumerate(pieces):
                time.sleep(0.02 * bool(number))  # so that they arrive by themselves
                self.request.sendall(piece)

    return threaded(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Says))


@contextlib.contextmanager
def threaded(server):
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield "http://{}:{}".format(*server.server_address)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def image_at(url):
    return await label_studio_client.LabelStudio(url, LEGACY, 100).image("/data/upload/1/a.png", 1, lambda _: None)


HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Length: 3\r\n\r\n"
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nimage"


@pytest.mark.parametrize(
    "pieces",
    [(HINTS, WHOLE), (HINTS + WHOLE,), (b"HTTP/1.1 100 Continue\r\n\r\n" + HINTS, WHOLE[:30], WHOLE[30:])],
)
def test_answers_that_only_inform(pieces):
    """A proxy before Label Studio may send some before the answer."""
    with answering(*pieces) as url:
        assert asyncio.run(image_at(url)) == b"image"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (HINTS, "it ends its answer too early"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "its answer is not HTTP"),
    ],
)
def test_answers_that_are_none(said, why):
    with answering(said) as url, pytest.raises(BadRequest, match=why):
        asyncio.run(image_at(url))


def test_a_turn_that_does_not_come(monkeypatch):
    """Label Studio is not to blame for it, and whoever waits for a turn loses nothing of the time to fetch."""
    monkeypatch.setattr(label_studio_client, "TURN_SECONDS", 0.05)
    monkeypatch.setattr(label_studio_client, "FETCHES", 1)

    async def two(fake):
        both = label_studio_client.LabelStudio(fake.url, LEGACY, 100)
        images = (both.image("/data/upload/1/a.png", task, lambda _: None) for task in (1, 2))
        running = [asyncio.ensure_future(image) for image in images]
        await asyncio.wait([running[1]])
        fake.go_on.set()
        return await asyncio.gather(*running, return_exceptions=True)

    with label_studio(HangingLabelStudio) as fake:
        first, second = asyncio.run(two(fake))
    assert first == b"image"
    assert isinstance(second, QueueFull)
    assert str(second) == f"too many images are being fetched from {fake.url} at once: try again later"


def test_a_label_studio_that_is_not_there(models, server_flags):
    with label_studio() as gone:
        pass
    flags = server_flags | {"label_studio_url": gone.url}
    with running(models, **flags) as server, client_of(server) as client:
        answer = client.post("/label-studio/rec/setup", json={"schema": CONFIG})
        assert f"{gone.url} cannot be reached: " in error_of(answer, 400)
        assert client.get("/label-studio/rec/health").status_code == 200


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://a", "http://", "http://a:b", "http://u:p@a", "http://a/?x=1"])
def test_addresses_of_label_studio(url):
    with pytest.raises(ValueError, match="--label-studio-url .* expected an address"):
        label_studio_client.LabelStudio(url, "token", 1)
