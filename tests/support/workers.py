"""Workers as a router's books hold them, made by hand."""

from penstock.protocol.messages import Compatibility, Peer, WorkerDescription, WorkerState
from penstock.router.fleet import Worker

SLOTS = 16
COMPATIBILITY = Compatibility(1, "m", "c", "bf16", "layout", 1, "shm")


def worker(name, role, pages=1000, cached=(), **state) -> Worker:
    description = WorkerDescription(role, "m", COMPATIBILITY, SLOTS, pages, 1 << 20, "k", "cpu", 1)
    peer = Peer(name, 1, f"tcp://{name}")
    return Worker(peer, description, WorkerState(**state), 0.0, set(cached))
