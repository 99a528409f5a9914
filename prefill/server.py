"""The prefill process: open what it stands on, then turn until told to stop."""

from functools import partial

from ..engine.station import Station, open_station
from ..kvtransfer.digests import digests_for
from ..kvtransfer.holder import Holder
from ..kvtransfer.open import open_for_worker
from ..kvtransfer.plane import Plane
from ..protocol.config import Config
from ..protocol.lifeline import report
from .scheduler import PrefillScheduler
from .worker import Parts, PrefillWorker

# Share of all pages that finished prompts may hold while readers have not pulled them.
LEASED_SHARE = 0.5


def main(config: Config, name: str) -> int:
    """Run the worker called `name` of the configuration; returns the exit status."""
    settings = config.worker("prefill", name)
    lifeline = report(name)
    plane_for = partial(open_for_worker, settings)
    station, plane = open_station(config, "prefill", settings, plane_for, lifeline.progress)
    worker = build(station, plane)
    lifeline.catch_signals()
    lifeline.ready(**station.facts())
    status = station.drive(worker, lifeline)
    plane.close()
    station.close()
    return status


def build(station: Station, plane: Plane) -> PrefillWorker:
    """The worker on its station."""
    settings, pool = station.settings, station.pool
    holder = Holder(
        pool,
        station.mailbox,
        plane,
        station.compatibility,
        settings.lease_seconds,
        digests=digests_for(station.compatibility, station.loaded.memory.description),
    )
    limit = int(pool.page_count * LEASED_SHARE)
    return PrefillWorker(
        Parts(
            station.mailbox,
            plane,
            station.loaded.engine,
            station.blocks,
            PrefillScheduler(station.blocks, settings.chunk_tokens, limit),
            holder,
            station.membership,
            station.pulse,
            station.context_length,
            station.loaded.config.vocabulary,
        )
    )
