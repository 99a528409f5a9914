"""What a decode worker can give to hand-overs now, beside its own work. Pure."""

from ..kvtransfer.incoming import Allowance
from .scheduler import DecodeScheduler


def allowance(scheduler: DecodeScheduler) -> Allowance:
    """Hand-overs and local work share pages in the order in which they arrived.

    A sequence that waits here (preempted, forked, or short enough to be prefilled here) is served
    before any hand-over that came later; otherwise a stream of hand-overs could starve it.
    """
    before = scheduler.waiting[0].arrived if scheduler.waiting else float("inf")
    return Allowance(scheduler.room, scheduler.headroom, before)
