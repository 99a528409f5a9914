"""Which plane a worker uses. `auto` probes and says why; a plane that was named is never replaced.

The reasons stand in the plane's `path`, which is printed at start and shown in /health.
"""

import secrets
import time

from ..protocol.config import Worker
from ..protocol.memory import PageMemory
from .host_memory import HostMemory
from .plane import Plane, PlaneError, PlaneSettings
from .targets import page_bytes_view

CHOICES = ("auto", "nixl", "tcp", "zmq", "shm")
PROBE_SECONDS = 10.0  # on a loaded machine the first connection alone was seen to take one


def open_plane(choice: str, settings: PlaneSettings) -> Plane:
    """Open the plane called `choice`. Raises PlaneError where it cannot be had.

    Each plane is imported only when it is wanted: nixl alone costs 0.1 s and 25 MB.
    """
    match choice:
        case "nixl":
            from .nixl_plane import NixlPlane

            return NixlPlane(settings)
        case "tcp":
            from .tcp_plane import TcpPlane

            return TcpPlane(settings)
        case "zmq":
            from .zmq_plane import ZmqPlane

            return ZmqPlane(settings)
        case "shm":
            from .shm_plane import ShmPlane

            return ShmPlane(settings)
        case "auto":
            return _probe(settings)
    raise PlaneError(f"{choice!r} is no plane: choose one of {', '.join(CHOICES)}")


def open_for_worker(
    worker: Worker, memory: PageMemory, unique: str, curve: tuple[bytes, bytes] | None
) -> Plane:
    """The plane a worker's configuration asks for, over its memory. Raises PlaneError."""
    host = worker.advertise or worker.host
    return open_plane(worker.kv_transport, PlaneSettings(memory, unique, host, curve=curve))


def _probe(settings: PlaneSettings) -> Plane:
    try:
        plane = open_plane("nixl", settings)
    except PlaneError as error:
        return _instead(settings, f"auto: nixl not taken, {error}")
    try:
        _read_back(plane, settings.memory)
    except PlaneError as error:
        plane.close()
        return _instead(settings, f"auto: nixl not taken, {error}")
    return plane


def _instead(settings: PlaneSettings, note: str) -> Plane:
    """Without keys the faster plane; with keys the one that encrypts."""
    if settings.curve is None:
        from .tcp_plane import TcpPlane

        return TcpPlane(settings, note)
    from .zmq_plane import ZmqPlane

    return ZmqPlane(settings, note)


def _read_back(plane: Plane, memory: PageMemory) -> None:
    """Read our first page through a second plane, as a peer would. Nothing is written to it."""
    copy = HostMemory(memory.page_bytes, 1)
    copy.pages[:] = b"\xa5" * memory.page_bytes  # ours is zeros: a read that moves nothing shows
    reader = open_plane("nixl", PlaneSettings(copy.memory, f"probe-{secrets.token_hex(8)}"))
    try:
        reader.add_peer("ourselves", 1, plane.metadata())
        reader.read("ourselves", [0], [0])
        until = time.monotonic() + PROBE_SECONDS
        while not (ended := reader.progress()):
            plane.progress()
            if time.monotonic() > until:
                raise PlaneError(f"a read of our own page did not end in {PROBE_SECONDS:.0f} s")
        if ended[0].failed:
            raise PlaneError(f"a read of our own page failed: {ended[0].failed}")
        # Device memory cannot be compared from here; its read has completed, which is what we ask.
        if memory.device == "cpu":
            with page_bytes_view(memory) as pages:
                if bytes(copy.pages) != bytes(pages[: memory.page_bytes]):
                    raise PlaneError("a read of our own page did not bring its bytes")
    finally:
        reader.close()
        copy.close()
