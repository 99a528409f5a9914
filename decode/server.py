"""The decode process (or the aggregated one): open what it stands on, turn until told to stop."""

from functools import partial

from ..engine.station import Station, open_station
from ..kvtransfer.digests import digests_for
from ..kvtransfer.incoming import ReaderSettings
from ..kvtransfer.open import open_for_worker
from ..kvtransfer.plane import Plane
from ..kvtransfer.reader import Reader
from ..protocol.config import Config
from ..protocol.lifeline import report
from ..protocol.messages import Role
from .scheduler import DecodeScheduler
from .worker import DecodeWorker, Parts


def main(config: Config, name: str) -> int:
    """Run the worker called `name` of the configuration; returns the exit status."""
    role: Role = "decode" if any(one.name == name for one in config.decode) else "aggregated"
    settings = config.worker(role, name)
    lifeline = report(name)
    plane_for = partial(open_for_worker, settings)
    station, plane = open_station(config, role, settings, plane_for, lifeline.progress)
    worker = build(station, plane)
    lifeline.catch_signals()
    lifeline.ready(**station.facts())
    status = station.drive(worker, lifeline)
    plane.close()
    station.close()
    return status


def build(station: Station, plane: Plane) -> DecodeWorker:
    """The worker on its station."""
    settings = station.settings
    reading = ReaderSettings(
        settings.page_slots,
        station.compatibility.page_bytes,
        renew_every=settings.lease_seconds / 4,
        read_seconds=settings.read_seconds,
        vocabulary=station.loaded.config.vocabulary,
    )
    reader = Reader(
        station.pool,
        station.mailbox,
        plane,
        station.compatibility,
        reading,
        digests=digests_for(station.compatibility, station.loaded.memory.description),
    )
    return DecodeWorker(
        Parts(
            station.mailbox,
            reader,
            station.loaded.engine,
            station.blocks,
            DecodeScheduler(station.blocks, settings.chunk_tokens, settings.max_batch),
            station.membership,
            station.pulse,
            station.context_length,
            station.loaded.config.vocabulary,
        )
    )
