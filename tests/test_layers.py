"""The house holds: who may import whom, what is pure, what is packaged, how long things are."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Folder -> folders it may import. Lower floors first; nothing imports upward or in a circle.
FLOORS: dict[str, set[str]] = {
    "protocol": set(),
    "kernels": set(),
    "models": {"kernels", "protocol"},
    "kvtransfer": {"protocol", "kernels"},
    "engine": {"models", "kernels", "protocol"},
    "prefill": {"engine", "kvtransfer", "protocol"},
    "decode": {"engine", "kvtransfer", "protocol"},
    "router": {"protocol", "models"},  # of models only what ROUTER_MODELS names
    "simulation": {"engine", "kvtransfer", "prefill", "decode", "router", "protocol"},
    "capacity": {"simulation", "engine", "prefill", "decode", "router", "protocol"},
    "deploy": {"protocol"},
    "bench": {
        *("protocol", "kernels", "models", "kvtransfer", "engine", "prefill", "decode"),
        *("router", "simulation", "capacity", "deploy"),
    },
}

# The parts of models that need no torch: text, its template, and the checkpoint's own words.
ROUTER_MODELS = {"tokenizer", "chat_template", "text_stream", "config", "fields", "blueprint"}

# Files that decide. They are given the time, they send through a seam, they touch no tensor.
PURE = [
    "protocol/messages.py",
    "protocol/memory.py",
    "protocol/blockhash.py",
    "protocol/findable.py",
    "protocol/page_states.py",
    "protocol/pages.py",
    "protocol/membership.py",
    "protocol/codec.py",
    "engine/sequence.py",
    "engine/step.py",
    "engine/chunking.py",
    "engine/finish.py",
    "engine/flights.py",
    "engine/frames.py",
    "kvtransfer/plane.py",
    "kvtransfer/moves.py",
    "engine/alone.py",
    "engine/health.py",
    "engine/inquiry.py",
    "engine/stranded.py",
    "models/blueprint.py",
    "models/fields.py",
    "models/standard.py",
    "models/config.py",
    "router/inbox.py",
    "router/health.py",
    "router/places.py",
    "protocol/seen.py",
    "kvtransfer/columns.py",
    "kvtransfer/hearing.py",
    "kvtransfer/holder.py",
    "kvtransfer/incoming.py",
    "kvtransfer/asked_read.py",
    "kvtransfer/known_peers.py",
    "kvtransfer/own_time.py",
    "kvtransfer/pace.py",
    "kvtransfer/ways.py",
    "kvtransfer/words.py",
    "kvtransfer/reader.py",
    "prefill/scheduler.py",
    "prefill/worker.py",
    "decode/scheduler.py",
    "decode/admission.py",
    "decode/worker.py",
    "router/policy.py",
    "router/placement.py",
    "router/silence.py",
    "router/flow.py",
    "router/fleet.py",
    "deploy/restarts.py",
    "simulation/memory.py",
    "simulation/network.py",
    "simulation/plane.py",
    "simulation/engine.py",
    "simulation/worker.py",
    "simulation/client.py",
    "simulation/cluster.py",
]
IMPURE = {"torch", "zmq", "time", "asyncio", "threading", "socket", "select", "random"}

MOST_LINES = 400
MOST_TEST_LINES = 500
MOST_FUNCTION_LINES = 60  # the aim is 40


def python_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*.py") if "__pycache__" not in file.parts)


def package_files() -> list[Path]:
    return [ROOT / "__main__.py"] + [f for name in FLOORS for f in python_files(ROOT / name)]


def files_of_tests() -> list[str]:
    return names(python_files(ROOT / "tests"))


def names(files: list[Path]) -> list[str]:
    return [str(file.relative_to(ROOT)) for file in files]


def imports(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Every import as its level and its parts; relative ones resolved against the root."""
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = node.module.split(".") if node.module else []
            if node.level:
                folder = file.parent.relative_to(ROOT).parts
                parts = [*folder[: len(folder) - node.level + 1], *parts]
            if parts:
                yield node.level, parts
            else:
                yield from ((node.level, [alias.name]) for alias in node.names)


PACKAGE_FILES = names(package_files())


@pytest.mark.parametrize("name", PACKAGE_FILES)
def test_imports_keep_to_their_floor(name: str) -> None:
    own, _, rest = name.partition("/")
    for level, parts in imports(ROOT / name):
        if level == 0:
            assert parts[0] not in FLOORS, f"import it relatively: {'.'.join(parts)}"
            assert parts[0] != "penstock", f"import it relatively: {'.'.join(parts)}"
        elif rest and parts[0] != own:
            assert parts[0] in FLOORS[own], f"{own} may not import {'.'.join(parts)}"
            if (own, parts[0]) == ("router", "models"):
                assert parts[1] in ROUTER_MODELS, f"router may not import {'.'.join(parts)}"


@pytest.mark.parametrize("name", PURE)
def test_pure_files_import_nothing_impure(name: str) -> None:
    found = {parts[0] for level, parts in imports(ROOT / name) if level == 0}
    assert not found & IMPURE


def modules_after(*modules: str) -> set[str]:
    """What a fresh interpreter has loaded after importing these."""
    program = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    return set(ran.stdout.decode().split())


def test_pure_files_bring_in_no_torch_and_no_sockets() -> None:
    modules = [f"penstock.{name.removesuffix('.py').replace('/', '.')}" for name in PURE]
    assert not modules_after(*modules) & {"torch", "zmq"}


def test_the_router_runs_without_torch() -> None:
    assert "torch" not in modules_after("penstock.router.server")


def test_configs_of_every_family_are_read_without_torch() -> None:
    files = python_files(ROOT / "models" / "families")
    modules = [f"penstock.models.families.{file.stem}" for file in files]
    assert "torch" not in modules_after("penstock.models.config", *modules)


def test_the_supervisor_and_the_command_line_run_without_torch() -> None:
    assert "torch" not in modules_after("penstock.deploy.local", "penstock.__main__")


def test_no_folder_is_a_package_of_its_own() -> None:
    """An __init__.py in a root folder would shadow public packages of the same name."""
    assert names([f for f in package_files() if f.name == "__init__.py"]) == []
    assert not (ROOT / "tests" / "__init__.py").exists()
    assert not (ROOT / "conftest.py").exists()


def test_every_folder_with_code_is_packaged() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {file.parent.relative_to(ROOT) for file in package_files()[1:]}
    packages = {"penstock", *(".".join(["penstock", *folder.parts]) for folder in folders)}
    assert set(project["tool"]["setuptools"]["packages"]) == packages


def test_every_folder_with_code_has_a_floor() -> None:
    folders = {
        entry.name
        for entry in ROOT.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and python_files(entry)
    }
    assert folders - {"tests", "docs", "build"} <= set(FLOORS)


def test_files_are_short() -> None:
    lines = {name: (ROOT / name).read_text().count("\n") for name in PACKAGE_FILES}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}
    tests = {name: (ROOT / name).read_text().count("\n") for name in files_of_tests()}
    assert {name: count for name, count in tests.items() if count > MOST_TEST_LINES} == {}


def test_functions_are_short() -> None:
    long = {
        f"{name}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for name in (*PACKAGE_FILES, *files_of_tests())
        for node in ast.walk(ast.parse((ROOT / name).read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > MOST_FUNCTION_LINES
    }
    assert long == {}
