"""What a worker process stands on, whatever its role: engine, pages, mailbox, standing.

Opened once at start from the resolved configuration. The transfer plane is opened by the caller
(engine and kvtransfer do not know each other) and given in.
"""

import os
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from ..protocol.clusterkey import read_key
from ..protocol.config import Config, Worker
from ..protocol.lifeline import Report
from ..protocol.loop import Gaps, run
from ..protocol.loop import Worker as Turning
from ..protocol.membership import Membership
from ..protocol.memory import PageMemory
from ..protocol.messages import REVISION, Compatibility, Role, WorkerDescription
from ..protocol.pages import PagePool
from ..protocol.seams import SystemClock
from ..protocol.sockets import Mailbox
from .chunking import Blocks
from .health import Pulse
from .load import EngineSettings, LoadedEngine, load_engine

STEP_LIMIT_SECONDS = 120.0  # a step that takes longer is stuck, says /health
QUARANTINE_SHARE = 0.25  # of all pages; beyond it only a new incarnation gets memory back
SWITCH_SECONDS = (
    0.0005  # the loop must not wait for the engine's thread as long as the default 5 ms
)
TELLING_SECONDS = 1.0  # from being stuck to the end: the routers hear why
RESTART_STATUS = 75  # "try again": the supervisor starts a new incarnation


class NamedPlane(Protocol):
    """As much of a transfer plane as a description needs."""

    @property
    def name(self) -> str: ...

    @property
    def path(self) -> str: ...

    @property
    def wake(self) -> int: ...


AnyPlane = TypeVar("AnyPlane", bound=NamedPlane)


class Stuckable(Turning, Protocol):
    """A worker that knows when it is stuck."""

    @property
    def stuck(self) -> str: ...


@dataclass(slots=True)
class Station:
    """The parts, ready for a worker to be built on them."""

    settings: Worker
    mailbox: Mailbox
    loaded: LoadedEngine
    pool: PagePool
    blocks: Blocks
    compatibility: Compatibility
    description: WorkerDescription
    membership: Membership
    pulse: Pulse
    gaps: Gaps
    context_length: int
    plane_wake: int  # a descriptor to wait on, or -1

    def facts(self) -> dict[str, str | int]:
        """What is in use, for the ready line (rule 4: nothing falls back in silence)."""
        described = self.description
        return {
            "name": self.mailbox.me.name,
            "role": described.role,
            "endpoint": self.mailbox.me.endpoint,
            "transport": described.transport,
            "kernels": described.kernels,
            "device": described.device,
            "numeric_class": self.compatibility.numeric_class,
            "pages": described.pages,
            "page_slots": described.page_slots,
            "context_length": self.context_length,
        }

    def drive(self, worker: Stuckable, lifeline: Report) -> int:
        """The loop, until told to stop; the exit status. Stuck, the process ends here."""
        sys.setswitchinterval(SWITCH_SECONDS)
        wanted = (self.loaded.engine.fileno(), *lifeline.filenos())
        if self.plane_wake >= 0:
            wanted += (self.plane_wake,)
        clock = SystemClock()
        told: list[float] = []  # when it became stuck, and the routers were told

        def stopping() -> bool:
            if worker.stuck and not told:
                told.append(clock.now() + TELLING_SECONDS)
            return lifeline.stopping or bool(told and clock.now() > told[0])

        run(worker, clock, lambda due: self.mailbox.wait(due, wanted), stopping, self.gaps)
        if not lifeline.stopping:
            lifeline.failed(worker.stuck)
            self.membership.leave()
            self.mailbox.close(flush_seconds=0.2)
            os._exit(RESTART_STATUS)  # closing what is stuck would hang, or raise
        return 0

    def close(self) -> None:
        self.membership.leave()
        self.mailbox.close(flush_seconds=0.2)
        self.loaded.close()


def open_station(
    config: Config,
    role: Role,
    settings: Worker,
    open_plane: Callable[[PageMemory, str, tuple[bytes, bytes] | None], AnyPlane],
    progress: Callable[[int, int, str], None],
) -> tuple[Station, AnyPlane]:
    """Load, map, bind. Raises ModelError, MailboxError, ClusterKeyError or the plane's error."""
    key = read_key(config.key_path) if config.key_path else None
    mailbox = Mailbox(
        settings.name, settings.host, settings.port, advertise=settings.advertise, key=key
    )
    loaded = load_engine(_engine_settings(config, settings), progress)
    pool = PagePool(loaded.memory.generations)
    unique = f"{settings.name}-{secrets.token_hex(4)}"
    plane = open_plane(loaded.memory.description, unique, key.curve if key else None)
    compatibility = Compatibility(
        revision=REVISION,
        model=loaded.model_digest,
        numeric_class=loaded.numeric_class,
        dtype=loaded.dtype,
        layout=str(loaded.memory.layout),
        page_bytes=loaded.memory.layout.page_bytes,
        plane=plane.name,
        checked=settings.kv_checked,
    )
    context = min(loaded.config.context_length, pool.page_count * settings.page_slots)
    description = _description(config, role, settings, loaded, compatibility, context, plane.path)
    gaps = Gaps()
    station = Station(
        settings,
        mailbox,
        loaded,
        pool,
        Blocks(pool, compatibility, settings.page_slots),
        compatibility,
        description,
        Membership(
            mailbox,
            config.routers,
            description,
            pool,
            settings.beat_seconds,
            lambda: plane.path,
            lambda: mailbox.counts("mailbox "),
        ),
        Pulse(STEP_LIMIT_SECONDS, QUARANTINE_SHARE, gaps, loaded.engine, loaded.failure),
        gaps,
        context,
        plane.wake,
    )
    return station, plane


def _engine_settings(config: Config, settings: Worker) -> EngineSettings:
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return EngineSettings(
        model=config.model_path,
        device=device,
        dtype=settings.dtype,
        kernels=settings.kernels,
        pages=settings.pages,
        memory_budget=settings.kv_memory_mib << 20,
        page_slots=settings.page_slots,
        threads=settings.threads,
        ranks=settings.ranks,
        shards=settings.shards,
    )


def _description(
    config: Config,
    role: Role,
    settings: Worker,
    loaded: LoadedEngine,
    compatibility: Compatibility,
    context: int,
    transport: str,
) -> WorkerDescription:
    return WorkerDescription(
        role=role,
        model=config.cluster.served_name,
        compatibility=compatibility,
        page_slots=settings.page_slots,
        pages=loaded.memory.description.page_count,
        context_length=context,
        kernels=loaded.kernels,
        device=loaded.device,
        pid=os.getpid(),
        transport=transport,
    )
