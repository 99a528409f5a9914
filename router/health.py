"""Is the cluster well? Pure: a function of the fleet's books and the time.

Ready = a request can be placed now. Well = ready, and no worker says that a part of it is stuck, or
says nothing at all.
"""

from typing import Any

from .fleet import Fleet, Worker

MISSING = "a prefill and a decode worker (or an aggregated one) are needed; usable are: {}"


def usable_roles(fleet: Fleet) -> dict[str, int]:
    """How many workers of each role new work can be placed on."""
    counts: dict[str, int] = {}
    for worker in fleet.workers.values():
        counts[worker.role] = counts.get(worker.role, 0) + worker.usable
    return counts


def ready(fleet: Fleet) -> tuple[bool, dict[str, Any]]:
    """Can a request be placed now?"""
    roles = usable_roles(fleet)
    able = bool(roles.get("aggregated") or (roles.get("prefill") and roles.get("decode")))
    return able, {"ready": able, "usable_workers": roles}


def health(fleet: Fleet, now: float, more: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
    """Well or not, why not, and every worker with what it uses (rule 4)."""
    able, fields = ready(fleet)
    stuck = [f"{one.peer.name}: {one.stuck}" for one in fleet.workers.values() if one.stuck]
    hanging = [
        f"{one.worker.peer.name}: loop: said nothing for {now - one.worker.heard:.1f} s"
        for one in fleet.hanging.values()
    ]
    missing = [] if able else [MISSING.format(fields["usable_workers"] or "none")]
    well = able and not stuck and not hanging
    return well, {
        "status": "well" if well else "unwell",
        "reasons": stuck + hanging + missing,
        "not_used": [f"{one.peer.name}: {one.reason}" for one in fleet.misfits.values()],
        **fields,
        **more,
        "workers": [_worker(one, now) for one in fleet.workers.values()],
    }


def _worker(worker: Worker, now: float) -> dict[str, Any]:
    described = worker.description
    return {
        "name": worker.peer.name,
        "role": worker.role,
        "stuck": worker.stuck,
        "heard_seconds_ago": round(now - worker.heard, 3),
        "transport": worker.transport,
        "kernels": described.kernels,
        "device": described.device,
        "numeric_class": described.compatibility.numeric_class,
        "pages": described.pages,
        "held_pages": worker.state.held_pages,
        "quarantined_pages": worker.state.quarantined_pages,
        "running": worker.state.running,
        "waiting": worker.state.waiting,
        "booked": len(worker.bookings),
    }
