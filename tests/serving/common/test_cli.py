"""What is the same for all commands: how they start, and how they end where something is refused."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Literal

import pytest

from serving.common import cli
from tests.serving.images import labels_at, save_image
from tests.test_project import ROOT

COMMAND = """
import os, sys
from contextlib import suppress
from dataclasses import dataclass
from serving.common import cli

@dataclass
class Config:
    table: bool = False
    file: str = ""

def main(config):
    if config.file:
        open(config.file, "wb", buffering=0).write(b"kept")
    with suppress(OSError):
        os.write(2, b"a library's note ")
    print("on its way", file=sys.stderr, flush=True)
    if config.table:
        print("| a table |")
    return {"result": 3}

cli.run(main, Config, "")
"""
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
RESULT = '{"result": 3}'


def run(redirections, *args, command=("-c", COMMAND)):
    """The command with a shell's redirections; its exit status, stdout and stderr, both without what went elsewhere."""
    shell = ["bash", "-c", f'"$@" {redirections}', "bash", sys.executable, *command]
    done = subprocess.run([*shell, *map(str, args)], capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT)
    return done.returncode, done.stdout, done.stderr


def run_into_closed_pipe(number, *args):
    """As `run`, with a pipe that nobody reads as that descriptor."""
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {{1: "stdout", 2: "stderr"}[number]: writer}
    done = subprocess.run([sys.executable, "-c", COMMAND, *args], text=True, cwd=ROOT, env=ENVIRONMENT, **streams)
    os.close(writer)
    return done.returncode, done.stdout or "", done.stderr or ""


@pytest.mark.parametrize("args", [[], ["--table"]])
@pytest.mark.parametrize(
    ("redirection", "number"), [(">&-", errno.EBADF), ("> /dev/full", errno.ENOSPC), (None, errno.EPIPE)]
)
def test_a_result_that_cannot_be_written_is_told(redirection, number, args):
    status, stdout, stderr = run(redirection, *args) if redirection else run_into_closed_pipe(1, *args)
    assert (status, stdout) == (2, "")
    note, last = stderr.splitlines()
    assert note == "a library's note on its way"
    assert last.startswith(f"error: standard output cannot be written to ({os.strerror(number)}): send it to a file")
    assert last.endswith(f"; all else is done, and the result is {RESULT}")


def test_help_that_nobody_reads():
    """As by `| head`: no mistake, other than a disk without room."""
    assert run_into_closed_pipe(1, "--help") == (0, "", "")
    status, _, stderr = run("> /dev/full", "--help")
    assert status == 2
    assert stderr.startswith("error: standard output cannot be written to") and stderr.count("\n") == 1


@pytest.mark.parametrize("redirection", ["2>&-", "2> /dev/full", None])
def test_nobody_needs_to_read_stderr(redirection):
    ended = run(redirection) if redirection else run_into_closed_pipe(2)
    assert ended == (0, RESULT + "\n", "")


def test_what_is_said_goes_into_no_file(tmp_path):
    """Without standard streams the first file that is opened would be one."""
    status, _, _ = run("<&- >&- 2>&-", "--file", tmp_path / "file")
    assert status == 2
    assert (tmp_path / "file").read_bytes() == b"kept"


@pytest.mark.parametrize("redirection", ["2>&-", "2> /dev/full", "<&- 2>&-"])
def test_a_batch_job_without_stderr_writes_its_labels(toy_model, tmp_path, redirection):
    image_HWC = save_image(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "b.png").write_bytes(b"no image")
    arguments = [toy_model, tmp_path / "photos", tmp_path / "out", "--provider", "cpu"]
    status, stdout, _ = run(redirection, *arguments, command=("-m", "serving.batch"))
    result = json.loads(stdout)
    assert (status, result["written"], result["failed"]) == (1, 1, 1)
    assert (labels_at(tmp_path / "out" / "labels" / "a.png") == image_HWC[..., 0] // 64).all()


class LibraryError(Exception):
    """As TensorFlow and h5py have their own."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("a flag: do this"), "a flag: do this"),
        (ValueError("x cannot be written to (Permission denied): do that"), "(Permission denied): do that"),
        (OSError(errno.ENOSPC, "No space left on device", "a.png"), "'a.png': make room on the disk"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "exceeded: make room on the disk"),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), "'runs': choose another folder, or allow"),
        (OSError(errno.EROFS, "Read-only file system", "runs"), "'runs': choose another folder, or allow"),
        (OSError("host3: [Errno 28] No space left on device: 'a.png'"), "'a.png': make room on the disk"),
        (LibraryError("a/b; No space left on device\nat line 3"), "a/b; No space left on device: make room"),
        (OSError(errno.ECONNREFUSED, "Connection refused"), "[Errno 111] Connection refused"),
        (MemoryError(), "out of memory: take smaller images"),
        (LibraryError("a fault"), None),
    ],
)
def test_what_is_refused_comes_with_a_remedy(error, said):
    message = cli.error_line(error)
    assert (message is None) if said is None else (said in message)


@dataclass
class Flags:
    batch_size: int = 8
    timeout: float = 30.0
    threads: int | None = None
    window: tuple[int, int] | None = None
    sizes: tuple[int, ...] = ()
    provider: Literal["auto", "cpu"] = "auto"
    labels: Literal["resized", "native"] | None = None

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"--batch-size must be at least 1: got {self.batch_size}")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("--batch-size foo", "--batch-size must be a whole number; got 'foo'"),
        ("--batch-size 1.5", "--batch-size must be a whole number; got '1.5'"),
        ("--timeout soon", "--timeout must be a number; got 'soon'"),
        ("--threads all", "--threads must be a whole number; got 'all'"),
        ("--window 32", "--window must be INT INT; got '32'"),
        ("--sizes 1 x", "--sizes: Could not find valid parse for arguments: ['1', 'x']"),
        ("--provider gpu", "--provider must be one of auto, cpu; got 'gpu'"),
        ("--labels own", "--labels must be one of native, resized; got 'own'"),
        ("--batch-size 0", "--batch-size must be at least 1: got 0"),
    ],
)
def test_a_wrong_value_is_named_with_its_flag(args, said, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda config: {}, Flags, "", args.split())
    assert (stop.value.code, capsys.readouterr().err) == (2, f"error: {said}; --help lists the flags\n")


def test_a_traceback_for_those_who_want_it(monkeypatch):
    monkeypatch.setenv("KERASSEG_TRACEBACK", "1")
    with pytest.raises(OSError, match="gone"), cli.command():
        raise OSError("gone")


@pytest.fixture
def on_a_small_disk():
    """Runs a shell's command with a disk of that many bytes at a folder, which this machine does not see."""

    def run(folder, size, command):
        folder.mkdir(parents=True, exist_ok=True)
        script = f'mount -t tmpfs -o size={size} none "$1" && shift && {command}'
        private = ["unshare", "--mount", "--map-root-user", "bash", "-c", script, "bash", str(folder), sys.executable]
        return subprocess.run(private, capture_output=True, text=True, cwd=ROOT)

    try:
        subprocess.run(["unshare", "--mount", "--map-root-user", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine lets nobody mount a disk in a namespace of its own")
    return run


def test_a_full_disk_is_told_and_leaves_nothing_half_written(toy_model, tmp_path, on_a_small_disk):
    for index in range(12):
        save_image(tmp_path / "photos" / f"{index}.png", height=128, width=128, seed=index)
    batch = f'"$@" -m serving.batch {toy_model} {tmp_path}/photos {tmp_path}/disk/out --provider cpu'
    done = on_a_small_disk(tmp_path / "disk", "60k", f"{batch}; echo $?; ls -AR {tmp_path}/disk")
    assert done.stdout.startswith("2\n") and ".tmp" not in done.stdout
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: [Errno 28] No space left on device: '{tmp_path}/disk/out/")
    assert last.endswith("': make room on the disk that is written to, and start again")


@pytest.mark.parametrize("room", ["serving", "training", "export", "benchmarks"])
def test_libraries_tell_nobody_of_their_use(room):
    """Whatever is imported of a room, what starts the process comes before any library."""
    code = f"import {room}, os, sys; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    code += "; print(sorted({'numpy', 'onnxruntime', 'openvino', 'ray', 'tensorflow'} & sys.modules.keys()))"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.stdout == "1\n[]\n"


def test_commands_change_libraries_and_imports_do_not():
    show = "print('openvino_telemetry' in sys.modules)"
    for code, found in (
        (f"import kerasseg.data\n{show}", "False\n"),
        (f"from serving.common import cli\ncli.run(lambda config: {show}, int, '', ['1'])", "True\n{}\n"),
    ):
        done = subprocess.run([sys.executable, "-c", f"import sys\n{code}"], capture_output=True, text=True, cwd=ROOT)
        assert done.stdout == found
