"""Which plane is taken, and that a plane that was named is never replaced."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import zmq

from penstock.kvtransfer import nixl_plane, shm_plane
from penstock.kvtransfer import open as opening
from penstock.kvtransfer.host_memory import HostMemory
from penstock.kvtransfer.open import open_plane
from penstock.kvtransfer.plane import PlaneError, PlaneSettings


@pytest.fixture
def settings() -> Iterator[PlaneSettings]:
    memory = HostMemory(4096, 8)
    memory.pages[:] = os.urandom(len(memory.pages))
    yield PlaneSettings(memory.memory, f"open-{os.getpid()}")
    memory.close()


@pytest.mark.skipif(importlib.util.find_spec("nixl") is None, reason="nixl is not installed")
def test_auto_takes_nixl_where_a_read_moves_bytes(settings: PlaneSettings) -> None:
    plane = open_plane("auto", settings)
    assert plane.name == "nixl" and "UCX (" in plane.path
    plane.close()


def test_auto_says_why_nixl_was_not_taken(
    settings: PlaneSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_library(settings: PlaneSettings) -> None:
        raise PlaneError("nixl cannot be imported: no such wheel")

    monkeypatch.setattr(nixl_plane, "NixlPlane", no_library)
    plane = open_plane("auto", settings)
    assert plane.name == "tcp" and "no such wheel" in plane.path
    assert "not encrypted" in plane.path
    plane.close()
    keys = zmq.curve_keypair()
    plane = open_plane("auto", replace(settings, curve=keys))
    assert plane.name == "zmq" and "no such wheel" in plane.path and "CURVE" in plane.path
    plane.close()
    with pytest.raises(PlaneError, match="no such wheel"):
        open_plane("nixl", settings)


def test_auto_does_not_take_a_nixl_that_moves_nothing(
    settings: PlaneSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nixl_plane, "NixlPlane", shm_plane.ShmPlane)
    monkeypatch.setattr(shm_plane.ShmPlane, "progress", lambda self: [])
    monkeypatch.setattr(opening, "PROBE_SECONDS", 0.01)
    plane = open_plane("auto", settings)
    assert plane.name == "tcp" and "did not end" in plane.path
    plane.close()


def test_what_cannot_be_had_is_refused_with_a_sentence(settings: PlaneSettings) -> None:
    with pytest.raises(PlaneError, match="auto, nixl, tcp, zmq, shm"):
        open_plane("rdma", settings)
    device = replace(settings, memory=replace(settings.memory, device="cuda:0", file=-1))
    for choice in ("shm", "tcp", "zmq"):
        with pytest.raises(PlaneError, match="host memory only"):
            open_plane(choice, device)
    with pytest.raises(PlaneError, match="memory file"):
        open_plane("shm", replace(settings, memory=replace(settings.memory, file=-1)))
    for choice in ("tcp", "zmq"):
        for host in ("no.such.host.invalid", "192.0.2.7"):  # an address of nobody's
            with pytest.raises(PlaneError, match="cannot listen"):
                open_plane(choice, replace(settings, host=host))


def test_importing_the_choice_imports_no_plane() -> None:
    import subprocess

    code = (
        "import sys, penstock.kvtransfer.open; sys.exit(bool({'nixl', 'zmq'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
