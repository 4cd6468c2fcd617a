import json
import logging
import threading
import time
import warnings

import pytest

from serving.service import logs
from serving.service.logs import json_lines

ours, requests = logging.getLogger("serving"), logging.getLogger("serving.requests")


def lines(capfd):
    captured = capfd.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


@pytest.mark.filterwarnings("always:of a library")
def test_everything_is_a_line_of_json(capfd):
    with json_lines():
        ours.info("model ready", extra={"model": "toy", "size": (4, 4)})
        requests.info("request", extra={"path": "/a\nb"})
        logging.getLogger("other").info("too little to tell")
        warnings.warn("of a library", UserWarning, stacklevel=1)
        try:
            raise KeyError("odd")
        except KeyError:
            ours.exception("request failed")
    ready, request, warning, failed = lines(capfd)
    assert ready.items() >= {"level": "info", "event": "model ready", "model": "toy", "size": [4, 4]}.items()
    assert request["path"] == "/a\nb"
    assert (warning["level"], "of a library" in warning["event"]) == ("warning", True)
    assert failed["traceback"].endswith("KeyError: 'odd'")
    ours.info("afterwards nothing")
    assert lines(capfd) == []


@pytest.mark.parametrize("wanted", [True, False])
def test_requests_may_be_left_out(capfd, wanted):
    with json_lines(requests=wanted):
        requests.info("request")
        ours.info("ready")
    assert [line["event"] for line in lines(capfd)] == ["request", "ready"][not wanted :]


def test_a_slow_reader_loses_lines_and_holds_nobody_up(capfd, monkeypatch):
    monkeypatch.setattr(logs, "MAX_WAITING", 5)
    reading, go_on, write = threading.Event(), threading.Event(), logs._Writer.write

    def slowly(line):
        reading.set()
        assert go_on.wait(60)
        write(line)

    monkeypatch.setattr(logs._Writer, "write", staticmethod(slowly))
    with json_lines():
        ours.info("0")
        assert reading.wait(60)
        for number in range(1, 20):
            ours.info(str(number))
        go_on.set()
    assert [line["event"] for line in lines(capfd)] == ["0", "1", "2", "3", "4", "5"]


def test_the_end_waits_for_a_slow_reader_and_for_no_reader_that_hangs(capfd, monkeypatch):
    monkeypatch.setattr(logs, "STALLED_SECONDS", 0.2)
    write, hangs = logs._Writer.write, threading.Event()

    def slowly(line):
        time.sleep(0.05)
        write(line)
        if json.loads(line)["event"] == "8":
            hangs.wait(60)

    monkeypatch.setattr(logs._Writer, "write", staticmethod(slowly))
    with json_lines():
        for number in range(1, 20):
            ours.info(str(number))
    assert [line["event"] for line in lines(capfd)] == [str(number) for number in range(1, 9)]
    hangs.set()
    for thread in threading.enumerate():
        if thread.name == "log":
            thread.join()
