"""`kerasseg`: what starts, what is imported for it, and what is answered where a part is missing."""

import importlib
import importlib.metadata
import os
import platform
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import kerasseg
from kerasseg import command, everything
from kerasseg.__main__ import arrange_path
from kerasseg.command import PARTS, load
from serving.common import cli
from tests.serving.images import save_image
from tests.serving.toy_model import write_toy_model
from tests.test_project import PROJECT, ROOT

HEAVY = {"tensorflow", "keras", "onnxruntime", "numpy", "starlette", "matplotlib"}
OWN = "raise SystemExit('a package of the user is imported')"


def python(code: str, *args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code, *args], cwd=cwd, env=environment, capture_output=True, text=True)


def kerasseg_without(missing: str, *args: str) -> subprocess.CompletedProcess:
    """The command, where a package is not installed."""
    start = "from kerasseg.__main__ import main; main()"
    return python(f"import sys; sys.modules[{missing!r}] = None; {start}", *args)


def make_own_packages(folder: Path) -> None:
    """What many projects have: `training/`, `serving/` and `export.py`."""
    for name in ("training", "serving"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(OWN)
    (folder / "export.py").write_text(OWN)


@pytest.mark.parametrize("args", [[], ["--help"], ["--version"], ["trian"]])
def test_it_starts_without_libraries(args):
    code = f"""
import atexit, sys
atexit.register(lambda: print(sorted({HEAVY!r} & sys.modules.keys())))
from kerasseg.__main__ import main
main()
"""
    assert python(code, *args).stdout.splitlines()[-1] == "[]"


def test_the_server_and_jobs_start_without_tensorflow():
    code = "import sys; from kerasseg.command import load; load('serve'); load('segment')"
    assert python(f"{code}; print('tensorflow' in sys.modules, 'onnxruntime' in sys.modules)").stdout == "False True\n"


def test_versions_are_those_of_the_packages():
    lines = dict(
        line.split(None, 1)
        for line in python("import kerasseg.command as c; c.main()", "--version").stdout.splitlines()
    )
    assert lines.keys() == {"kerasseg", "Python", "TensorFlow", "Keras", "onnxruntime", "device"}
    assert lines["kerasseg"] == PROJECT["version"]
    assert (lines["TensorFlow"], lines["Keras"]) == tuple(map(importlib.metadata.version, ("tensorflow", "keras")))


def test_the_device_is_named(monkeypatch):
    monkeypatch.setattr(command, "has_gpu", lambda: False)
    assert command.device() == f"CPU ({platform.machine()})"
    monkeypatch.setattr(command, "has_gpu", lambda: True)
    monkeypatch.setattr(command, "gpu_names", lambda: ["A100", "T4"])
    assert command.device() == "A100, T4"
    monkeypatch.setattr(command, "gpu_names", lambda: [])
    assert command.device() == 'an NVIDIA GPU (pip install "kerasseg[serve]" to see which)'


def test_the_overview_has_a_line_for_each_part():
    shown = python("import kerasseg.command as c; c.main()", "--help").stdout
    for name, part in PARTS.items():
        assert f"\n  {name:<10}  {part.help}\n" in shown


def test_every_part_is_a_command_and_its_extra_exists():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, part in PARTS.items():
        assert isinstance(load(name), cli.Command) and part.extra in declared


@pytest.mark.parametrize(
    ("args", "missing", "said"),
    [
        (["train", "--help"], "tensorflow", 'tensorflow is not installed: pip install "kerasseg[train]"'),
        (["report", "runs/first"], "matplotlib", 'matplotlib is not installed: pip install "kerasseg[train]"'),
        pytest.param(
            ["export", "runs/first"],
            "tf2onnx",
            'tf2onnx is not installed: pip install "kerasseg[export]"',
            marks=pytest.mark.slow,
        ),
        (["serve", "models"], "uvicorn", 'uvicorn is not installed: pip install "kerasseg[serve]"'),
        (["trian"], "uvicorn", "there is no command 'trian' (perhaps train?); kerasseg --help lists them"),
        (["completion"], "uvicorn", "expected kerasseg completion with one of bash, zsh, fish; got ''"),
    ],
)
def test_what_is_missing_is_named_in_one_line(args, missing, said):
    done = kerasseg_without(missing, *args)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {said}\n")


@pytest.mark.parametrize("statement", ["kerasseg.S4GAN", "from kerasseg.data import open_dataset"])
def test_importing_it_without_tensorflow(statement):
    done = python(f"import sys; sys.modules['tensorflow'] = None; import kerasseg; print('imported'); {statement}")
    assert done.stdout == "imported\n"
    last = done.stderr.splitlines()[-1]
    assert last == 'ModuleNotFoundError: tensorflow is not installed: pip install "kerasseg[train]"'


def test_the_top_has_what_it_lists():
    assert all(getattr(kerasseg, name) is getattr(everything, name) for name in kerasseg.__all__)
    assert set(kerasseg.__all__) <= set(dir(kerasseg))
    with pytest.raises(AttributeError, match="no attribute 'S4GAM'"):
        _ = kerasseg.S4GAM


@pytest.mark.slow
@pytest.mark.parametrize("first", ["import keras", "from kerasseg.data import open_dataset", "import kerasseg.losses"])
def test_keras_knows_every_class(first):
    """After `import kerasseg`, whatever is imported next."""
    known = "import keras; print(keras.saving.get_registered_object('kerasseg>S4GAN').__name__)"
    done = python(f"import kerasseg; {first}; {known}")
    assert (done.stdout, done.stderr) == ("S4GAN\n", "")  # no notes of TensorFlow about GPUs


def test_packages_of_the_user_are_left_aside(tmp_path):
    make_own_packages(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = [sys.executable, "-m", "kerasseg", "segment", "--help"]
    done = subprocess.run(started, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("usage: kerasseg segment [flags] MODEL")


def test_the_current_folder_is_searched_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "/elsewhere", str(tmp_path)])
    arrange_path()
    assert sys.path == [str(ROOT), "/elsewhere", str(tmp_path)]


def test_bash_completes_commands_and_flags(tmp_path):
    commands = {name: load(name) for name in ("segment", "serve")}
    script = cli.completion("bash", "kerasseg", commands)
    words = 'complete_words() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}; '
    words += '_tyro_kerasseg kerasseg "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"; echo "${COMPREPLY[@]}"; }\n'
    asked = ("se", "segment --ra", "segment --rank ", "segment --provider ")
    calls = "\n".join(f"complete_words kerasseg {line} {chr(39) * 2 if line[-1] == ' ' else ''}" for line in asked)
    done = subprocess.run(["bash", "-c", f"{script}\n{words}{calls}"], capture_output=True, text=True, cwd=tmp_path)
    assert [set(line.split()) for line in done.stdout.splitlines()] == [
        {"segment", "serve"},
        {"--rank", "--ray-address", "--ray-actors"},
        {"None", "diverse", "uncertainty"},
        {"auto", "cpu", "cuda"},
    ]


@pytest.fixture(scope="module")
def wheel_folder(tmp_path_factory):
    """The wheel, built from this checkout and unpacked as `pip install` does."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, ROOT]
    subprocess.run([*pip, *build], check=True)
    [wheel] = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", folder / "site", wheel], check=True)
    return folder / "site"


@pytest.mark.slow
def test_the_wheel_works_next_to_packages_of_the_user(wheel_folder, tmp_path):
    """They come first on the path, and what the wheel brings is only `kerasseg`."""
    assert {path.name for path in wheel_folder.iterdir() if path.suffix != ".dist-info"} == {"bin", "kerasseg"}
    make_own_packages(tmp_path / "own")
    toy_model = write_toy_model(tmp_path / "models" / "toy", 1)
    save_image(tmp_path / "own" / "photos" / "a.png")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "own"), str(wheel_folder)])}

    def run(*args):
        started = [sys.executable, *map(str, args)]
        return subprocess.run(started, cwd=tmp_path / "own", env=environment, capture_output=True, text=True)

    script = wheel_folder / "bin" / "kerasseg"
    done = run(script, "segment", toy_model, "photos", "segmented", "--provider", "cpu")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "own/segmented/labels/a.png").is_file()
    for name in ("train", "label", "serve"):
        done = run(script, name, "--help")
        assert done.stdout.startswith(f"usage: kerasseg {name} [flags]"), done.stderr
    assert run("-m", "kerasseg", "--version").stdout.startswith("kerasseg ")
    every = "import importlib, pkgutil, sys, kerasseg\n"
    every += "names = [info.name for info in pkgutil.walk_packages(kerasseg.__path__, 'kerasseg.')]\n"
    every += "for name in names: importlib.import_module(name)\n"
    every += "print({'training', 'export', 'serving'} & sys.modules.keys(), kerasseg.__file__)"
    assert run("-c", every).stdout == f"set() {wheel_folder / 'kerasseg' / '__init__.py'}\n"
    done = run("-c", "import training")
    assert "a package of the user" in done.stderr
