"""What both ends of a hand-over under faults are made of: real pages, mailbox and plane, no model.

A block's bytes are a function of its request and its place, so that whoever reads it can tell
whether they are right, whichever holder wrote them and however often its page was granted again.
"""

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec
import numpy
from numpy.typing import NDArray

from ...kvtransfer.host_memory import HostMemory
from ...kvtransfer.open import CHOICES, open_plane
from ...kvtransfer.plane import Plane, PlaneSettings
from ...protocol import blockhash
from ...protocol.clusterkey import ClusterKey
from ...protocol.messages import REVISION, Compatibility, Peer, Prefill, Sampling
from ...protocol.pages import PagePool
from ...protocol.sockets import Mailbox

WAYS = ("nixl", "nixl-tcp", "shm", "tcp", "zmq", "zmq-curve")
PLANES = tuple(way for way in WAYS if way.partition("-")[0] in CHOICES)
SMALL_PAGES = tuple(f"{way}-small" for way in PLANES if way.startswith("nixl"))  # gathered there
ACROSS_HOSTS = tuple(way for way in PLANES if way not in ("nixl", "shm"))  # nixl would take CMA
MOVES_ITSELF = ("shm", "tcp", "zmq", "zmq-curve")  # a read given up is quiet at once
NEEDS_NO_HOLDER = ("nixl", "shm")  # on one host a holder that stands still can be read
PAGE_SLOTS = 2
SMALL_PAGE_BYTES = 1536  # so small that one post of them is worth gathering
MODEL, NUMERIC_CLASS = "known bytes", "exact"
ROUTER = Peer("router", 1, "tcp://127.0.0.1:9")  # nobody is there, and nobody is asked
STEPS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)  # request, block, word


class EndSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One end of hand-overs, as it travels to the process that becomes it. Times in seconds."""

    plane: str  # --kv-transport, with "-tcp" NIXL held to TCP, with "-curve" encrypted
    name: str
    host: str = "127.0.0.1"
    port: int = 0
    advertise: str = ""
    page_bytes: int = 20 << 10  # no power of two: parts and pages never meet by luck
    page_count: int = 1700
    bytes_per_post: int = 256 << 10
    lease_seconds: float = 10.0
    renew_every: float = 2.5
    read_seconds: float = 10.0
    waiting_seconds: float = 60.0
    control_key: tuple[str, str] | None = None  # beyond loopback the mailbox wants one
    page_key: tuple[str, str] | None = None


@dataclass(slots=True)
class Parts:
    """What is real at one end."""

    memory: HostMemory
    pool: PagePool
    mailbox: Mailbox
    plane: Plane
    compatibility: Compatibility

    def close(self) -> None:
        self.plane.close()
        self.mailbox.close()
        self.memory.close()


def open_parts(settings: EndSettings) -> Parts:
    """Raises PlaneError or MailboxError."""
    key = ClusterKey(*settings.control_key) if settings.control_key else None
    mailbox = Mailbox(
        settings.name, settings.host, settings.port, advertise=settings.advertise, key=key
    )
    memory = HostMemory(settings.page_bytes, settings.page_count)
    curve = None
    if settings.page_key is not None and settings.plane.endswith("-curve"):
        curve = (settings.page_key[0].encode(), settings.page_key[1].encode())
    asked = PlaneSettings(
        memory.memory,
        f"{settings.name}-{secrets.token_hex(4)}",
        settings.host,
        settings.bytes_per_post,
        curve,
    )
    with lanes_of(settings.plane):
        plane = open_plane(settings.plane.partition("-")[0], asked)
    compatibility = Compatibility(
        REVISION, MODEL, NUMERIC_CLASS, "bytes", "pages", settings.page_bytes, plane.name
    )
    return Parts(memory, PagePool(memory.generations), mailbox, plane, compatibility)


@contextmanager
def lanes_of(plane: str) -> Iterator[None]:
    """UCX reads this when an agent is made; afterwards it is put back for the others."""
    before = os.environ.get("UCX_TLS")
    if plane.startswith("nixl-tcp"):
        os.environ["UCX_TLS"] = "tcp"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("UCX_TLS", None)
        else:
            os.environ["UCX_TLS"] = before


# --- prompts and their bytes ----------------------------------------------------------------------


def prompt(request: int, attempt: int, blocks: int, reader: str) -> Prefill:
    """A prompt of so many blocks, the last one partial; no two requests share one."""
    tokens = [request + 1, *range(1, blocks * PAGE_SLOTS - 1)]
    salt = f"tenant {request % 3}"
    sampling = Sampling(seed=request)
    return Prefill(
        request, attempt, ROUTER, MODEL, salt, tokens, len(tokens), [0], sampling, reader
    )


def hashes_of(prefill: Prefill) -> tuple[list[bytes], bytes]:
    """Of its full blocks, and of the partial one behind them."""
    root = blockhash.root(MODEL, NUMERIC_CLASS, prefill.cache_salt)
    hashes = blockhash.extend(root, prefill.token_ids, PAGE_SLOTS)
    return hashes, blockhash.tail(root, hashes, prefill.token_ids, PAGE_SLOTS)


def block_words(request: int, block: int, page_bytes: int) -> NDArray[numpy.uint64]:
    """uint64 [page_bytes / 8]: what this block of this request holds."""
    start = (request * STEPS[0] + block * STEPS[1]) & (2**64 - 1)
    return numpy.uint64(start) ^ _ramp(page_bytes)


def _ramp(page_bytes: int, kept: dict[int, NDArray[numpy.uint64]] = {}) -> NDArray[numpy.uint64]:  # noqa: B006 (one table is meant)
    if page_bytes not in kept:
        kept[page_bytes] = numpy.arange(page_bytes // 8, dtype=numpy.uint64) * numpy.uint64(
            STEPS[2]
        )
    return kept[page_bytes]


def write_block(memory: HostMemory, page: int, request: int, block: int) -> None:
    memory.page(page)[:] = block_words(request, block, memory.memory.page_bytes).tobytes()


def wrong_blocks(memory: HostMemory, pages: Sequence[int], request: int) -> list[int]:
    """Blocks whose pages do not hold what they should."""
    size = memory.memory.page_bytes
    return [
        block
        for block, page in enumerate(pages)
        if not numpy.array_equal(
            numpy.frombuffer(memory.page(page), dtype=numpy.uint64),
            block_words(request, block, size),
        )
    ]
