"""The production worker loops around the two ends of hand-overs, with an engine at will."""

from typing import Any

from penstock.decode.scheduler import DecodeScheduler
from penstock.decode.worker import DecodeWorker
from penstock.decode.worker import Parts as DecodeParts
from penstock.engine.chunking import Blocks
from penstock.engine.health import Pulse
from penstock.prefill.scheduler import PrefillScheduler
from penstock.prefill.worker import Parts as PrefillParts
from penstock.prefill.worker import PrefillWorker
from penstock.protocol.loop import Gaps
from penstock.protocol.membership import Membership
from penstock.protocol.messages import WorkerDescription
from penstock.simulation.memory import SLOTS

from .handover_ends import COMPATIBILITY, PAGES, Ends, Wire

VOCABULARY = 1000
BEAT_SECONDS = 5.0  # seldom, so that the hand-over's own times are what the loop comes back for


class HeldEngine:
    """A step that does not end, or no step at all."""

    def __init__(self, busy: bool) -> None:
        self.busy = busy

    def start(self, step: object) -> None:
        raise AssertionError("nothing is to be computed here")

    def finished(self) -> None:
        return None


def decode_worker(ends: Ends, busy: bool = False) -> DecodeWorker:
    blocks = Blocks(ends.reading, ends.compatibility, SLOTS)
    scheduler = DecodeScheduler(blocks, 8, 8)
    rest = _rest(ends.reader_wire, ends, "decode")
    engine: Any = HeldEngine(busy)
    return DecodeWorker(DecodeParts(rest[0], ends.reader, engine, blocks, scheduler, *rest[1:]))


def prefill_worker(ends: Ends, busy: bool = False) -> PrefillWorker:
    blocks = Blocks(ends.holding, ends.compatibility, SLOTS)
    scheduler = PrefillScheduler(blocks, 8, PAGES)
    rest = _rest(ends.holder_wire, ends, "prefill")
    engine: Any = HeldEngine(busy)
    return PrefillWorker(
        PrefillParts(rest[0], ends.holder_plane, engine, blocks, scheduler, ends.holder, *rest[1:])
    )


def _rest(wire: Wire, ends: Ends, role: Any) -> tuple[Any, ...]:
    pool = ends.reading if role == "decode" else ends.holding
    context = PAGES * SLOTS
    description = WorkerDescription(
        role, "m", COMPATIBILITY, SLOTS, PAGES, context, "none", "none", 1
    )
    membership = Membership(wire, [], description, pool, BEAT_SECONDS)
    return wire, membership, Pulse(1000.0, 0.9, Gaps()), context, VOCABULARY
