"""The project as a whole: who may import whom, what is declared and pinned, that every test is found."""

import ast
import importlib
import os
import pkgutil
import re
import tomllib
from collections.abc import Iterable
from fnmatch import fnmatch
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("kerasseg", "serving", "training", "export")


def project_files() -> list[Path]:
    """Files of the tree that .gitignore does not name, without needing git."""
    ignored = [".git", *(line.strip("/") for line in (ROOT / ".gitignore").read_text().split())]

    def kept(name: str) -> bool:
        return not any(fnmatch(name, pattern) for pattern in ignored)

    files = []
    for folder, subfolders, names in os.walk(ROOT):
        subfolders[:] = filter(kept, subfolders)
        files += [Path(folder, name) for name in filter(kept, names)]
    return sorted(files)


def may_import() -> dict[str, list[str]]:
    """By room, what else of ours it may import: the table in CONTRIBUTING.md."""
    rooms = {}
    for row in re.findall(r"^\| (`.*) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.M):
        folder, _, allowed = row.split(" | ")
        rooms[re.sub(r"/$|\.py$", "", folder.strip("`")).replace("/", ".")] = re.findall("`(.*?)`", allowed)
    return rooms


def imports(path: Path) -> set[str]:
    """What a file imports, wherever in it: `a.b.c` for `from a.b import c`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: write from {'.' * node.level}{node.module or ''} import ... in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def is_within(name: str, modules: Iterable[str]) -> bool:
    """Whether a dotted name is one of the modules, or in one."""
    return any(f"{name}.".startswith(f"{module}.") for module in modules)


def requirements() -> list[Requirement]:
    """Of other projects, by all extras."""
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    found = [Requirement(line) for group in groups for line in group]
    return [requirement for requirement in found if requirement.name != PROJECT["name"]]


def test_no_address_of_a_registry_and_no_path_of_somebodys_machine():
    # Written so that this file does not match itself.
    forbidden = re.compile(r"py[p]i\.org|python[h]osted|/[r]oot/|/[h]ome/\w|/[U]sers/\w|/[w]ork/")
    for path in project_files():
        if path.suffix not in (".png", ".jpg", ".onnx", ".keras"):
            found = forbidden.search(path.read_text(encoding="utf-8"))
            assert not found, f"{path.relative_to(ROOT)} names {found[0]}"


def headings(file: Path) -> set[str]:
    """The anchors of a Markdown file's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", file.read_text(encoding="utf-8"), flags=re.M | re.S)
    found = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_links_of_markdown_files_lead_somewhere():
    for file in project_files():
        if file.suffix == ".md":
            for target in re.findall(r"\]\((?!https?:)([^)]+)\)", file.read_text(encoding="utf-8")):
                path, _, anchor = target.partition("#")
                linked = file.parent / path if path else file
                assert linked.exists(), f"{file.relative_to(ROOT)} links to {target}"
                assert not anchor or anchor in headings(linked), f"{file.relative_to(ROOT)} links to {target}"


@pytest.mark.parametrize("room", PACKAGES)
def test_every_module_imports(room):
    package = importlib.import_module(room)
    names = [module.name for module in pkgutil.walk_packages(package.__path__, f"{room}.")]
    assert len(names) == len(list((ROOT / room).rglob("*.py"))) - 1, "a folder without __init__.py"
    for name in names:
        importlib.import_module(name)


@pytest.mark.parametrize("package", [*PACKAGES, "benchmarks"])
def test_arrows_point_one_way(package):
    allowed = may_import()
    for path in (ROOT / package).rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        rooms = [room for room in allowed if is_within(module, [room])]
        assert rooms, f"{module} is in no room of CONTRIBUTING.md"
        ours = {name for name in imports(path) if is_within(name, [*PACKAGES, "benchmarks", "tests"])}
        refused = {name for name in ours if not is_within(name, [*rooms, *allowed[rooms[0]]])}
        assert not refused, f"{module} imports {', '.join(sorted(refused))}: CONTRIBUTING.md has what it may import"


def test_what_is_imported_is_declared():
    declared = {canonicalize_name(requirement.name) for requirement in requirements()}
    providers = packages_distributions()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for name in {name.split(".")[0] for name in imports(path)} & providers.keys() - {*PACKAGES}:
                provided_by = {canonicalize_name(provider) for provider in providers[name]}
                assert declared & provided_by, f"{path} imports {name}: declare it in pyproject.toml"


def test_constraints_pin_what_pyproject_asks_for():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines == sorted(lines)
    pins = {}
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line), line
        name, pins[name] = line.split("==")[0], line.split("==")[1]
    for requirement in requirements():
        name = canonicalize_name(requirement.name)
        assert name in pins, f"constraints.txt lacks {name}"
        assert requirement.specifier.contains(pins[name]), f"{requirement} against {pins[name]}"


def test_one_version():
    assert importlib.import_module("kerasseg").__version__ == PROJECT["version"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_pytest_finds_every_test():
    for path in (ROOT / "tests").rglob("*.py"):
        assert (path.parent / "__init__.py").exists(), f"{path.parent} needs an __init__.py"
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
                assert path.name.startswith("test_"), f"pytest ignores {path}: name it test_*.py"
            # A contract that test classes inherit from lies in a file of its own, under a name without Test.
            if isinstance(node, ast.ClassDef) and path.name.startswith("test_"):
                methods = [member.name for member in node.body if isinstance(member, ast.FunctionDef)]
                ignored = not node.name.startswith("Test") and any(name.startswith("test") for name in methods)
                assert not ignored, f"pytest ignores the class {node.name} in {path}: name it Test..."


def test_private_names_of_other_packages_stand_in_one_file():
    """Those of Keras and TensorFlow, which a new version may change: `kerasseg/keras_internals.py`."""
    for path in [file for room in ("kerasseg", "training", "export") for file in (ROOT / room).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr) and path.stem != "keras_internals":
                own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                assert own or node.attr == "_replace", f"{path}:{node.lineno}: {node.attr} is not public"


def test_no_import_circles():
    """At the top of modules: which of them a module imports, and these, and so on, never comes back to it."""
    modules = {module_name(path): path for room in PACKAGES for path in (ROOT / room).rglob("*.py")}

    def imported(name: str) -> list[str]:
        found = []
        for node in ast.parse(modules[name].read_text()).body:
            if isinstance(node, ast.ImportFrom):
                found += [f"{node.module}.{alias.name}" for alias in node.names] + [str(node.module)]
            elif isinstance(node, ast.Import):
                found += [alias.name for alias in node.names]
        return [module for module in found if module in modules and modules[module].name != "__init__.py"]

    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        assert name not in path, " imports ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in imported(name):
                visit(other, [*path, name])
            done.add(name)

    for name in modules:
        visit(name, [])


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_files_are_short_enough_to_read():
    for package in [*PACKAGES, "benchmarks"]:
        for path in [*(ROOT / package).rglob("*.py"), *(ROOT / package).rglob("*.js")]:
            assert len(path.read_text().splitlines()) <= 400, (
                f"{path.relative_to(ROOT)} has more than 400 lines: split it"
            )
