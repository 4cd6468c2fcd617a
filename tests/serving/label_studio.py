"""A stand-in for Label Studio: it has images, asks for a token, and notes what it was asked."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PERSONAL = "eyJ.cGVyc29uYWw.c2lnbmF0dXJl"
"""A personal access token: it is exchanged for others, which open the images."""

LEGACY = "0123456789abcdef0123456789abcdef01234567"
"""A token of the older kind, which opens them itself."""


class FakeLabelStudio:
    """Attributes:
    url: where it is.
    answers: by path with its query, the status, headers and body of what it has.
    asked: method, path and Authorization of each request.
    accepted: values of Authorization that it takes; each exchange of the personal token adds one.
    """

    def __init__(self):
        self.answers = {"/api/current-user/whoami": (200, {}, b'{"id": 1}')}
        self.asked = []
        self.accepted = [f"Token {LEGACY}"]
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                length = int(self.headers["Content-Length"] or 0)
                authorization = self.headers["Authorization"]
                fake.asked.append((self.command, self.path, authorization))
                self.send(*fake.answer(self.command, self.path, authorization, self.rfile.read(length)))

            do_POST = do_GET

            def send(self, status, headers, body):
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    if value:
                        self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, method, path, authorization, body):
        """Status, headers and body."""
        if path == "/api/token/refresh/":
            if json.loads(body) != {"refresh": PERSONAL}:
                return 401, {}, b'{"detail": "Token is invalid"}'
            access = f"access-{len(self.accepted)}"
            self.accepted.append(f"Bearer {access}")
            return 200, {}, json.dumps({"access": access}).encode()
        if authorization not in self.accepted:
            return 401, {}, b'{"detail": "Invalid token."}'
        return self.authorized(method, path, body)

    def authorized(self, method, path, body):
        """The same, of a request with a token."""
        return self.answers.get(path, (404, {}, b"{}"))

    def images_asked(self):
        return [path for method, path, _ in self.asked if method == "GET" and path != "/api/current-user/whoami"]


class HangingLabelStudio(FakeLabelStudio):
    """Answers to no question for an image before `go_on` is set; `waiting` have asked meanwhile."""

    def __init__(self):
        super().__init__()
        self.go_on = threading.Event()
        self.waiting = 0

    def authorized(self, method, path, body):
        self.waiting += 1
        assert self.go_on.wait(60)
        return 200, {}, b"image"


@contextlib.contextmanager
def label_studio(kind=FakeLabelStudio):
    fake = kind()
    thread = threading.Thread(target=fake.server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield fake
    finally:
        fake.server.shutdown()
        thread.join()
        fake.server.server_close()
