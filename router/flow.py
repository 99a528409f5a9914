"""Requests in flight: place them, pass their tokens on once and in order, place them again. Pure.

The flow keeps each request's prompt and what it has emitted. When a worker dies, the choices it
was answering are prefilled again elsewhere with prompt and output so far; since a token is a pure
function of its prefix and the request, the stream goes on with the same tokens. Every (choice,
position) is accepted once; a second word that differs is counted as an alarm.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from itertools import islice, takewhile

from ..protocol.messages import (
    Admitted,
    Cancel,
    Failed,
    FinishReason,
    Message,
    Peer,
    PromptReport,
    TokenLogprobs,
    Tokens,
    Unknown,
)
from ..protocol.seams import Transport
from .fleet import Fleet
from .flow_numbers import FlowCounters, FlowSettings
from .placement import Entry, InFlight, Phase, Placement, Progress, rows_of
from .placing import Placing
from .request import Listener, Refusal, Stages, Submission
from .silence import Finding, Silence

REMEMBERED_STAGES = 4096
MOST_OVERDUE = 64  # requests ended in one tick


class Flow:
    """All requests of one router; the `Requests` of the HTTP side."""

    def __init__(
        self,
        transport: Transport,
        fleet: Fleet,
        settings: FlowSettings,
        now: Callable[[], float],
        first_id: int,
    ):
        self._transport = transport
        self._fleet = fleet
        self._settings = settings
        self._now = now
        self._next_id = first_id
        self.counters = FlowCounters()
        self._placing = Placing(
            transport, fleet, settings, self.counters, self._fail, self._report_lost
        )
        self.guard = self._placing.guard
        self._silence = Silence(settings.inquire_seconds, self.counters, self.guard)
        self.in_flight = self._placing.in_flight
        self._stages: OrderedDict[int, Stages] = OrderedDict()

    # --- what the HTTP side asks ---------------------------------------------------------------

    def submit(self, submission: Submission, listener: Listener) -> int:
        """Take a request. Raises Refusal where no worker can serve it."""
        places, now = self._placing.places, self._now()
        submission = places.bounded(submission)
        self._next_id += 1
        request = InFlight(
            self._next_id,
            submission,
            listener,
            [Progress() for _ in range(submission.choices)],
            began=now,
        )
        request.unplaced = [tuple(range(submission.choices))]
        if not self._placing.place(request, now):
            if self._placing.leaving or not places.just_lost(now):
                raise Refusal(503, places.why_none(submission.model), retry_after=1.0)
            self._placing.strand(request, now)
        self.in_flight[request.id] = request
        return request.id

    def stop_choice(self, request: int, choice: int) -> None:
        """A stop string was found in this choice's text."""
        flight = self.in_flight.get(request)
        if flight is not None and not flight.progress[choice].ended:
            for placement in list(flight.placements.values()):
                if choice in placement.choices and len(placement.choices) > 1:
                    self._placing.cancel_choice(flight, placement, choice)
                elif choice in placement.choices:
                    self._placing.cancel(flight, placement)
            self._choice_ended(flight, choice)

    def cancel(self, request: int) -> None:
        """The client is gone."""
        flight = self.in_flight.get(request)
        if flight is not None:
            self._abandon(flight)

    def stages(self, request: int) -> Stages:
        flight = self.in_flight.get(request)
        return flight.stages if flight is not None else self._stages.get(request, Stages())

    # --- what workers say ----------------------------------------------------------------------

    def tokens(self, sender: Peer, frame: Tokens) -> None:
        """One step's tokens of one worker."""
        rows, now = rows_of(sender, frame), self._now()
        for report in frame.firsts:
            self._report(report, now)
        for request, attempt, choice, position, token_id, finish, logprob in rows:
            flight = self.in_flight.get(request)
            placement = flight.placements.get(attempt) if flight is not None else None
            if flight is None or placement is None:
                self._stale(sender, request, attempt)
                continue
            if sender.endpoint == placement.route.decode and placement.phase is Phase.PREFILLING:
                self._decoding(flight, placement)
            if choice not in placement.choices:
                if not finish:
                    self._send(sender.endpoint, Cancel(request, attempt, choice))
                continue
            progress = flight.progress[choice]
            progress.heard = now
            expected = flight.prompt_length + len(progress.emitted)
            if position == expected and flight.reported and not progress.early:
                self._give(flight, progress, choice, token_id, logprob, finish)
            else:
                self._out_of_turn(flight, choice, position, Entry(token_id, logprob, finish))

    def admitted(self, sender: Peer, message: Admitted) -> None:
        """A hand-over is complete: the prefill worker is not needed any more."""
        flight = self.in_flight.get(message.request)
        placement = flight.placements.get(message.attempt) if flight is not None else None
        if flight is None or placement is None:
            self._stale(sender, message.request, message.attempt)
            return
        self.counters.pulled_bytes += message.pulled_bytes
        self.counters.pulled_pages += message.pulled_pages
        self.counters.skipped_pages += message.skipped_pages
        flight.stages = replace(
            flight.stages, transfer=message.transfer_seconds, admission_wait=message.wait_seconds
        )
        flight.admitted_at = now = self._now()
        flight.cached_tokens = message.cached_tokens
        flight.heard(placement, now)
        if placement.phase is Phase.PREFILLING:
            self._decoding(flight, placement)
        if placement.route.prefill not in self._fleet.workers:
            self._report_lost(flight, placement)

    def failed(self, sender: Peer, message: Failed) -> None:
        """A worker could not go on with an attempt."""
        flight = self.in_flight.get(message.request)
        placement = flight.placements.get(message.attempt) if flight is not None else None
        if flight is None or placement is None:
            return
        if placement.phase is Phase.DECODING and sender.endpoint != placement.route.decode:
            return  # the prefill worker's part was done
        if message.retryable:
            flight.failed_at |= {placement.route.prefill, placement.route.decode}
            self._placing.again(flight, placement)
        else:
            self._fail(flight, 500, message.reason)

    def unknown(self, sender: Peer, message: Unknown) -> None:
        """A worker does not have what it was asked for."""
        for found in self._silence.unknown(self.in_flight, sender, message):
            self._placing.again(found.flight, found.placement, found.choices)

    def worker_lost(self, endpoint: str) -> None:
        """Everything that depends on this worker is placed again, in the turns that follow."""
        self._placing.worker_lost(endpoint)

    # --- time ----------------------------------------------------------------------------------

    @property
    def behind(self) -> bool:
        """Requests wait to be placed again: `turn` is due."""
        return self._placing.behind

    def turn(self, now: float) -> None:
        """Place some of them. Called between other things for as long as we are `behind`."""
        self._placing.turn(now, self._settings.turn_tokens)

    def leave(self) -> None:
        """Told to stop: what has no worker from now on ends at once."""
        self._placing.leaving = True

    def tick(self, now: float) -> None:
        """Ask for what is silent; end what is over its time; see to what waits for a worker."""
        limit = self._settings.request_seconds or float("inf")
        over = takewhile(lambda one: now - one.began >= limit, self.in_flight.values())
        for flight in [*islice(over, MOST_OVERDUE)]:
            self.counters.overdue += 1
            self._fail(flight, 504, f"the request did not end within request_seconds = {limit:g}")
        self._placing.tick(now)
        findings = self._silence.look(self.in_flight, now)
        for endpoint, inquiry in findings.inquiries.items():
            if endpoint in self._fleet.workers:
                self._send(endpoint, inquiry)
        for found in findings.gaps:
            self._mend(found)

    # --- passing on ----------------------------------------------------------------------------

    def _decoding(self, flight: InFlight, placement: Placement) -> None:
        placement.move(Phase.DECODING)
        if placement.route.prefill != placement.route.decode:
            self._placing.places.unbook(flight, placement, placement.route.prefill)

    def _report(self, report: PromptReport, now: float) -> None:
        flight = self.in_flight.get(report.request)
        placement = flight.placements.get(report.attempt) if flight is not None else None
        if flight is None or placement is None:
            return
        flight.heard(placement, now)
        self._placing.places.computed(flight, placement)
        if not flight.reported:
            flight.stages = replace(
                flight.stages, queue=report.queue_seconds, prefill=report.prefill_seconds
            )
            self._give_report(flight, report)

    def _report_lost(self, flight: InFlight, placement: Placement) -> None:
        """The prompt is computed, and the word that says so will not come any more."""
        if flight.reported or flight.placements.get(placement.attempt) is not placement:
            return  # or the request has ended meanwhile
        if flight.submission.sampling.prompt_logprobs >= 0:
            self._placing.again(flight, placement)  # nobody else knows the prompt's scores
            return
        attempt, cached = placement.attempt, flight.cached_tokens
        self._give_report(flight, PromptReport(flight.id, attempt, cached, -1.0, -1.0))

    def _mend(self, found: Finding) -> None:
        """Words wait for an earlier one that was lost: a first token's, or the prompt's report."""
        flight, progresses = found.flight, found.flight.progress
        first = flight.prompt_length
        if not flight.reported and any(first in progresses[one].early for one in found.choices):
            self._report_lost(flight, found.placement)
        else:
            self._placing.again(flight, found.placement, found.choices)

    def _give_report(self, flight: InFlight, report: PromptReport) -> None:
        flight.reported = True
        flight.listener.prompt(report)
        for choice in range(len(flight.progress)):
            self._drain(flight, choice)

    def _out_of_turn(self, flight: InFlight, choice: int, position: int, entry: Entry) -> None:
        """A word that came before its turn, or again."""
        progress = flight.progress[choice]
        index = position - flight.prompt_length
        if index < len(progress.emitted):
            self.counters.repeated += 1
            if index >= 0 and progress.emitted[index] != entry.token_id:
                self.counters.differing += 1
            return
        first = progress.early.setdefault(position, entry)
        self.counters.differing += first.token_id != entry.token_id
        self._drain(flight, choice)

    def _drain(self, flight: InFlight, choice: int) -> None:
        progress = flight.progress[choice]
        while flight.reported and progress.early and not progress.ended:
            position = flight.prompt_length + len(progress.emitted)
            entry = progress.early.pop(position, None)
            if entry is None:
                return
            said = (entry.token_id, entry.logprobs, entry.finish)
            self._give(flight, progress, choice, *said)

    def _give(
        self,
        flight: InFlight,
        progress: Progress,
        choice: int,
        token_id: int,
        logprobs: TokenLogprobs | None,
        finish: FinishReason,
    ) -> None:
        """The next token of a choice, to the client."""
        if token_id >= 0:
            progress.emitted.append(token_id)
        if len(progress.emitted) == 2 and flight.stages.first_decode_step < 0:
            self._note_first_step(flight)
        if finish:
            self._choice_ended(flight, choice)
        flight.listener.token(choice, token_id, logprobs, finish)

    def _note_first_step(self, flight: InFlight) -> None:
        if flight.admitted_at >= 0:
            step = self._now() - flight.admitted_at
            flight.stages = replace(flight.stages, first_decode_step=step)

    # --- ends ----------------------------------------------------------------------------------

    def _choice_ended(self, flight: InFlight, choice: int) -> None:
        flight.progress[choice].ended = True
        for placement in list(flight.placements.values()):
            placement.choices.discard(choice)
            if not placement.choices:
                self._placing.remove(flight, placement, Phase.DONE)
        flight.unplaced = [
            kept for group in flight.unplaced if (kept := tuple(c for c in group if c != choice))
        ]
        if all(progress.ended for progress in flight.progress):
            self._forget(flight)

    def _abandon(self, flight: InFlight) -> None:
        for placement in list(flight.placements.values()):
            self._placing.cancel(flight, placement)
            self._placing.remove(flight, placement, Phase.GONE)
        for progress in flight.progress:
            progress.ended = True  # the listener is not called again
        self._forget(flight)

    def _fail(self, flight: InFlight, status: int, reason: str) -> None:
        self.counters.failed += 1
        self._abandon(flight)
        flight.listener.failed(status, reason)

    def _forget(self, flight: InFlight) -> None:
        self._placing.forget(flight)
        self._stages[flight.id] = flight.stages
        while len(self._stages) > REMEMBERED_STAGES:
            self._stages.popitem(last=False)

    def _stale(self, sender: Peer, request: int, attempt: int) -> None:
        self.counters.stale += 1
        self._send(sender.endpoint, Cancel(request, attempt))

    def _send(self, endpoint: str, message: Message) -> None:
        self._transport.send(endpoint, message)
