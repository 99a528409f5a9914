"""Finds a place for some choices of a request, and keeps the books of what was placed. Pure."""

from dataclasses import replace

from msgspec import structs

from ..protocol import blockhash
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
        longest, prompt = self._fleet.context_length, len(submission.token_ids)
        sampling = submission.sampling
        if longest == 0 or prompt + sampling.max_tokens <= longest:
            return submission
        if prompt + 1 > longest:
            reason = f"the workers' memory holds {longest} tokens; prompt and answer have at least"
            raise Refusal(400, f"{reason} {prompt + 1}", "prompt")
        return replace(submission, sampling=structs.replace(sampling, max_tokens=longest - prompt))

    def find(self, flight: InFlight, choice: int, token_ids: list[int]) -> Route | None:
        """A route for `token_ids` (the prompt, and what this choice has emitted), or None.

        Not where an attempt failed before, unless there is no other way.
        """
        demand = self._demand(flight, choice, token_ids)
        workers = list(self._fleet.workers.values())
        local, failed = self._settings.local_prefill_tokens, flight.failed_at
        elsewhere = [one for one in workers if one.peer.endpoint not in failed]
        decodes = [one for one in workers if one in elsewhere or one.role == "prefill"]
        prefills = [one for one in workers if one in elsewhere or one.role != "prefill"]
        tries = (elsewhere, decodes, prefills, workers) if failed else (workers,)
        return next((route for some in tries if (route := choose(demand, some, local))), None)

    def book(self, flight: InFlight, placement: Placement, tokens: int) -> None:
        """Note what the placement will ask of its workers; count the decision."""
        route = placement.route
        counted = f"placed_{route.kind}"
        setattr(self._counters, counted, getattr(self._counters, counted) + 1)
        key = (flight.id, placement.attempt)
        pages = -(-tokens // (self._fleet.page_slots or 1))
        self._fleet.workers[route.prefill].bookings[key] = Booking(route.uncached, pages)
        if route.decode != route.prefill:
            self._fleet.workers[route.decode].bookings[key] = Booking(0, pages)

    def computed(self, flight: InFlight, placement: Placement) -> None:
        """The prompt is computed: nothing of it waits before others any more."""
        worker = self._fleet.workers.get(placement.route.prefill)
        booking = worker.bookings.get((flight.id, placement.attempt)) if worker else None
        if booking is not None:
            booking.tokens = 0

    def unbook(self, flight: InFlight, placement: Placement, endpoint: str) -> None:
        """This worker is not needed for it any more."""
        worker = self._fleet.workers.get(endpoint)
        if worker is not None:
            worker.bookings.pop((flight.id, placement.attempt), None)

    def just_lost(self, now: float) -> bool:
        """A worker left a moment ago and is probably being started again: worth waiting for."""
        return now - self._fleet.last_loss < self._settings.failover_seconds

    def why_none(self) -> str:
        """Why no worker can take a request now."""
        workers = self._fleet.workers.values()
        roles = sorted({one.role for one in workers if one.usable})
        have = f"only {' and '.join(roles)} workers are usable" if roles else "no worker is usable"
        need = "a prefill and a decode worker (or an aggregated one) are needed"
        return f"no route: {have}; {need}"

    def _demand(self, flight: InFlight, choice: int, token_ids: list[int]) -> Demand:
        sampling, prompt = flight.submission.sampling, flight.prompt_length
        left = sampling.max_tokens - (len(token_ids) - prompt)
        return Demand(
            len(token_ids),
            prompt + sampling.max_tokens,
            self._hashes(flight, choice, token_ids),
            self._fleet.page_slots or 1,
            left <= 1,
        )

    def _hashes(self, flight: InFlight, choice: int, token_ids: list[int]) -> list[bytes]:
        compatibility = self._fleet.compatibility
        # A scored prompt is computed whole, whatever is cached: its logits are the answer.
        if compatibility is None or flight.submission.sampling.prompt_logprobs >= 0:
            return []
        key = (choice, len(token_ids))
        if key not in flight.hashes:
            salt = flight.submission.cache_salt
            root = blockhash.root(compatibility.model, compatibility.numeric_class, salt)
            flight.hashes[key] = blockhash.extend(root, token_ids, self._fleet.page_slots)
        return flight.hashes[key]
