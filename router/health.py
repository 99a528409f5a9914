"""Is the cluster well? Pure: a function of the fleet's books and the time.

Ready = a request can be placed now. Well = one can for every model, and no worker says that a part
of it is stuck, or says nothing at all.
"""

from collections.abc import Iterable
from typing import Any

from .fleet import Fleet, Worker

MISSING = "a prefill and a decode worker (or an aggregated one) are needed; usable are: {}"


def usable_roles(workers: Iterable[Worker]) -> dict[str, int]:
    """How many workers of each role new work can be placed on."""
    counts: dict[str, int] = {}
    for worker in workers:
        counts[worker.role] = counts.get(worker.role, 0) + worker.usable
    return counts


def ready(fleet: Fleet) -> tuple[bool, dict[str, Any]]:
    """Can a request be placed now? With several models: one for any of them, so that the trouble
    of one takes no other from its clients."""
    served = fleet.models or dict.fromkeys(one.model for one in fleet.workers.values())
    models = {model: _able(usable_roles(fleet.of(model))) for model in served}
    able, roles = any(models.values()), usable_roles(fleet.workers.values())
    return able, {"ready": able, "usable_workers": roles, "models": models}


def _able(roles: dict[str, int]) -> bool:
    return bool(roles.get("aggregated") or (roles.get("prefill") and roles.get("decode")))


def health(fleet: Fleet, now: float, more: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
    """Well or not, why not, and every worker with what it uses (rule 4)."""
    able, fields = ready(fleet)
    stuck = [f"{one.peer.name}: {one.stuck}" for one in fleet.workers.values() if one.stuck]
    hanging = [
        f"{one.worker.peer.name}: loop: said nothing for {now - one.worker.heard:.1f} s"
        for one in fleet.hanging.values()
    ]
    missing = _missing(fleet, fields["models"])
    well = able and not stuck and not hanging and not missing
    return well, {
        "status": "well" if well else "unwell",
        "reasons": stuck + hanging + missing,
        "not_used": [f"{one.peer.name}: {one.reason}" for one in fleet.misfits.values()],
        **fields,
        **more,
        "workers": [_worker(one, now) for one in fleet.workers.values()],
    }


def _missing(fleet: Fleet, models: dict[str, bool]) -> list[str]:
    """What each model that cannot be served lacks."""
    if not models:
        return [MISSING.format("none")]
    return [
        (f"{model}: " if len(models) > 1 else "")
        + MISSING.format(usable_roles(fleet.of(model)) or "none")
        for model, able in models.items()
        if not able
    ]


def _worker(worker: Worker, now: float) -> dict[str, Any]:
    described = worker.description
    return {
        "name": worker.peer.name,
        "role": worker.role,
        "model": worker.model,
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
