"""Finds a place for some choices of a request, and keeps the books of what was placed. Pure."""

from dataclasses import replace

from msgspec import structs

from ..protocol import blockhash
from ..protocol.messages import WorkerDescription
from .fleet import Booking, Fleet
from .flow_numbers import FlowCounters, FlowSettings
from .placement import InFlight, Placement
from .policy import Demand, Route, choose
from .request import Refusal, Submission


class Places:
    """The fleet as one request's placements see it."""

    def __init__(self, fleet: Fleet, settings: FlowSettings, counters: FlowCounters):
        self._fleet = fleet
        self._settings = settings
        self._counters = counters

    def bounded(self, submission: Submission) -> Submission:
        """Within what the workers of this moment hold, not of who joins later. Raises Refusal."""
        longest, prompt = self._fleet.context_length(submission.model), len(submission.token_ids)
        sampling = submission.sampling
        if longest == 0 or prompt + sampling.max_tokens <= longest:
            return submission
        if prompt + 1 > longest:
            reason = f"the workers' memory holds {longest} tokens; prompt and answer have at least"
            raise Refusal(400, f"{reason} {prompt + 1}", "prompt")
        return replace(submission, sampling=structs.replace(sampling, max_tokens=longest - prompt))

    def find(self, flight: InFlight, token_ids: list[int]) -> Route | None:
        """A route for `token_ids` (the prompt, and what one choice has emitted), or None.

        Not where an attempt failed before, unless there is no other way.
        """
        workers = self._fleet.of(flight.submission.model)
        if not workers:
            return None
        demand = self._demand(flight, token_ids, workers[0].description)
        local, failed = self._settings.local_prefill_tokens, flight.failed_at
        if not failed:
            return choose(demand, workers, local)
        elsewhere = [one for one in workers if one.peer.endpoint not in failed]
        decodes = [one for one in workers if one in elsewhere or one.role == "prefill"]
        prefills = [one for one in workers if one in elsewhere or one.role != "prefill"]
        tries = (elsewhere, decodes, prefills, workers)
        return next((route for some in tries if (route := choose(demand, some, local))), None)

    def book(self, flight: InFlight, placement: Placement, tokens: int) -> None:
        """Note what the placement will ask of its workers; count the decision."""
        route = placement.route
        counted = f"placed_{route.kind}"
        setattr(self._counters, counted, getattr(self._counters, counted) + 1)
        key = (flight.id, placement.attempt)
        prefill, decode = self._fleet.workers[route.prefill], self._fleet.workers[route.decode]
        pages = -(-tokens // prefill.description.page_slots)
        prefill.bookings.add(key, Booking(route.uncached, pages))
        if decode is not prefill:
            decode.bookings.add(key, Booking(0, pages))

    def computed(self, flight: InFlight, placement: Placement) -> None:
        """The prompt is computed: nothing of it waits before others any more."""
        worker = self._fleet.workers.get(placement.route.prefill)
        if worker is not None:
            worker.bookings.computed((flight.id, placement.attempt))

    def unbook(self, flight: InFlight, placement: Placement, endpoint: str) -> None:
        """This worker is not needed for it any more."""
        worker = self._fleet.workers.get(endpoint)
        if worker is not None:
            worker.bookings.drop((flight.id, placement.attempt))

    def just_lost(self, now: float) -> bool:
        """A worker left a moment ago and is probably being started again: worth waiting for."""
        return now - self._fleet.last_loss < self._settings.failover_seconds

    def why_none(self, model: str) -> str:
        """Why no worker can take a request for this model now."""
        roles = sorted({one.role for one in self._fleet.of(model) if one.usable})
        have = f"only {' and '.join(roles)} workers are usable" if roles else "no worker is usable"
        need = "a prefill and a decode worker (or an aggregated one) are needed"
        return f"no route{self._for(model)}: {have}; {need}"

    def _for(self, model: str) -> str:
        return f" for {model}" if len(self._fleet.models) > 1 else ""

    def _demand(
        self, flight: InFlight, token_ids: list[int], described: WorkerDescription
    ) -> Demand:
        sampling, prompt = flight.submission.sampling, flight.prompt_length
        left = sampling.max_tokens - (len(token_ids) - prompt)
        return Demand(
            len(token_ids),
            prompt + sampling.max_tokens,
            _hashes(flight, token_ids, described),
            described.page_slots,
            left <= 1,
        )


def _hashes(flight: InFlight, token_ids: list[int], described: WorkerDescription) -> list[bytes]:
    """Of the full blocks. Those of the prompt are kept: a request that is placed again has them,
    and what it has emitted extends them."""
    submission, kind, slots = flight.submission, described.compatibility, described.page_slots
    # A scored prompt is computed whole, whatever is cached: its logits are the answer.
    if submission.sampling.prompt_logprobs >= 0:
        return []
    root = blockhash.root(kind.model, kind.numeric_class, submission.cache_salt)
    if flight.hashed_for != (root, slots):
        flight.hashes = blockhash.extend(root, submission.token_ids, slots)
        flight.hashed_for = (root, slots)
    known = flight.hashes
    parent = known[-1] if known else root
    return known + blockhash.extend(parent, token_ids, slots, len(known))
