"""The decode worker: take hand-overs in, give every sequence its next token, step after step.

It also prefills short remainders itself, and whole prompts where it runs as `aggregated`. Written
against the seams like the prefill worker; `turn` is the whole of it.
"""

from dataclasses import dataclass

from ..engine.alone import Alone
from ..engine.chunking import Blocks
from ..engine.finish import finish_reason
from ..engine.flights import Flights
from ..engine.frames import Frames
from ..engine.health import Pulse, Rates
from ..engine.inquiry import absent
from ..engine.sequence import Sequence
from ..engine.step import Drawn, Engine, Slice, StepResult
from ..engine.stranded import StrandedReads
from ..kvtransfer.incoming import Incoming
from ..kvtransfer.reader import Reader
from ..protocol.membership import Membership
from ..protocol.messages import (
    Admitted,
    Agent,
    Cancel,
    Failed,
    Handoff,
    Identify,
    Inquire,
    LeaseEnded,
    Message,
    Peer,
    Prefill,
    Published,
    Refused,
    WorkerState,
)
from ..protocol.seams import Arrival, Connected, Disconnected, Received, Transport
from ..protocol.seen import Seen
from .admission import allowance
from .scheduler import DecodeScheduler

BLOCKED_SECONDS = 10.0
PULLING_POLL_SECONDS = 0.0002  # while reads are open


@dataclass(slots=True)
class Parts:
    """What a decode worker is made of."""

    transport: Transport
    reader: Reader
    engine: Engine
    blocks: Blocks
    scheduler: DecodeScheduler
    membership: Membership
    pulse: Pulse
    context_length: int
    vocabulary: int


class DecodeWorker:
    """Receive, admit, start, send."""

    def __init__(self, parts: Parts):
        self._transport = parts.transport
        self._reader = parts.reader
        self._flights = Flights(parts.engine)
        self._blocks = parts.blocks
        self._scheduler = parts.scheduler
        self._membership = parts.membership
        self._pulse = parts.pulse
        self._context_length = parts.context_length
        self._vocabulary = parts.vocabulary
        self._rates = Rates()
        self._seen = Seen()  # attempts begun here
        self._failures = 0
        self._blocked_since = 0.0
        self._alone = Alone()
        self._stranded = StrandedReads()
        self.stuck = ""  # which part makes no progress; then only a new incarnation helps
        self._generated = 0

    def turn(self, now: float) -> float:
        """Everything that is due; returns when to come back at the latest."""
        for arrival in self._transport.receive():
            self._take(arrival, now)
        if (result := self._flights.finished()) is not None:
            self._pulse.step_ended(now, result.error, self._flights.busy)
            self._commit(result, now)
        due = self._reader.turn(allowance(self._scheduler), now)
        self._settle_handovers(now)
        self._start(now)
        reads = self._reader.open_reads
        idle = self._scheduler.idle and not self._reader.incoming
        self.stuck = self._pulse.stuck(now, self._blocks.pool, idle) or self._stranded.stuck(
            {one: by.holder.endpoint for one, by in reads.items() if one not in by.reads}, now
        )
        due = min(due, self._membership.beat(now, self._state, self._counters, self.stuck))
        return now + PULLING_POLL_SECONDS if reads else due

    def _start(self, now: float) -> None:
        """The next step; or, while one runs, the one behind it."""
        if not self._flights.busy:
            step = self._alone.next_step() or self._scheduler.next_step(
                self._reader.oldest_waiting, now
            )
            self._give_up_blocked(step is not None, now)
            if step is not None:
                self._pulse.step_started(now)
                self._flights.start(step)
        elif (last := self._flights.last) is not None and not self._alone.waiting:
            if (step := self._scheduler.step_behind(last, self._context_length)) is not None:
                self._flights.start(step)

    def _give_up_blocked(self, moving: bool, now: float) -> None:
        """Nothing runs, nothing arrives, and still the oldest does not fit: pages are lost to
        quarantine. It is computed elsewhere."""
        arriving = len(self._reader.incoming) > len(self._reader.waiting)
        if moving or arriving or not self._scheduler.waiting:
            self._blocked_since = now
        elif now - self._blocked_since > BLOCKED_SECONDS:
            self._fail(self._scheduler.waiting[0], "its pages are quarantined", retryable=True)

    # --- messages ------------------------------------------------------------------------------

    def _take(self, arrival: Arrival, now: float) -> None:
        match arrival:
            case Received(sender, message):
                self._message(sender, message, now)
            case Connected() | Disconnected():
                was_router = self._membership.link(arrival, self._state())
                if isinstance(arrival, Disconnected):
                    self._reader.holder_lost(arrival.endpoint)
                    self._stranded.lost(arrival.endpoint)
                    if was_router:
                        self._router_lost(arrival.endpoint)

    def _message(self, sender: Peer, message: Message, now: float) -> None:
        match message:
            case Prefill(request, attempt) if self._seen.first((request, attempt)):
                reason = self._blocks.refuse(message, self._context_length, self._vocabulary)
                if reason:
                    refusal = Failed(request, attempt, reason, False)
                    self._transport.send(message.router.endpoint, refusal)
                else:
                    self._scheduler.add(self._blocks.sequence(message, now))
            case Cancel(request, attempt, choice):
                if choice < 0:
                    self._reader.cancel(request, attempt)
                self._drop(request, attempt, choice)
            case Handoff(prefill):
                self._stranded.heard(sender.endpoint, now)
                if self._seen.first((prefill.request, prefill.attempt)):
                    self._reader.take(sender, message, now)
            case Published() | Agent() | Refused() | LeaseEnded():
                self._stranded.heard(sender.endpoint, now)
                self._reader.take(sender, message, now)
            case Identify():
                self._membership.take(sender, message, self._state())
            case Inquire():
                self._answer(sender, message)
            case _:
                pass  # a word for another role

    def _answer(self, sender: Peer, inquiry: Inquire) -> None:
        """A choice is here from its hand-over, or its prompt, to its last token."""
        arriving = {
            (one.handoff.prefill.request, one.handoff.prefill.attempt)
            for one in self._reader.incoming.values()
        }
        here = {
            (sequence.prefill.request, sequence.prefill.attempt, choice)
            for sequence in self._scheduler.all
            if not sequence.cancelled
            for choice in sequence.choices
        }
        unknown = absent(inquiry, lambda *one: one in here or one[:2] in arriving)
        if unknown is not None:
            self._transport.send(sender.endpoint, unknown)

    def _router_lost(self, endpoint: str) -> None:
        for incoming in list(self._reader.incoming.values()):
            prefill = incoming.handoff.prefill
            if prefill.router.endpoint == endpoint:
                self._reader.cancel(prefill.request, prefill.attempt)
        for sequence in self._scheduler.all:
            if sequence.prefill.router.endpoint == endpoint:
                self._drop(sequence.prefill.request, sequence.prefill.attempt, -1)

    def _drop(self, request: int, attempt: int, choice: int) -> None:
        """Forget sequences that nobody waits for."""
        for sequence in self._scheduler.all:
            prefill = sequence.prefill
            if (prefill.request, prefill.attempt) != (request, attempt):
                continue
            if choice >= 0 and sequence.choices != [choice]:
                if choice in sequence.choices and not self._flights.holds(sequence):
                    sequence.choices.remove(choice)
                continue
            self._end(sequence)

    def _end(self, sequence: Sequence) -> None:
        """It leaves: at once, or when no step in flight writes its pages any more."""
        if self._flights.holds(sequence):
            sequence.cancelled = True
        else:
            self._scheduler.remove(sequence)

    # --- hand-overs ----------------------------------------------------------------------------

    def _settle_handovers(self, now: float) -> None:
        for incoming in self._reader.complete:
            self._admit(incoming, now)
        self._reader.complete.clear()
        for lost in self._reader.lost:
            self._failures += 1
            prefill = lost.handoff.prefill
            self._transport.send(
                prefill.router.endpoint,
                Failed(prefill.request, prefill.attempt, f"hand-over: {lost.reason}", True),
            )
        self._reader.lost.clear()

    def _admit(self, incoming: Incoming, now: float) -> None:
        """The first choice takes the pulled pages; the others find its full blocks in the cache
        and compute the partial tail again, so that no page ever has two writers."""
        prefill, first = incoming.handoff.prefill, incoming.first_tokens
        assert first is not None
        frames = Frames()
        pulled = incoming.pages
        for choice, token_id, finish, logprobs in zip(
            first.choices, first.token_ids, first.finish, first.logprobs, strict=True
        ):
            tokens = [*prefill.token_ids, token_id]
            sequence = Sequence(prefill, [choice], tokens, arrived=incoming.arrived)
            sequence.started = now
            # Said again: the holder may have died before its own word reached the router.
            frames.token(sequence, choice, len(prefill.token_ids), token_id, finish, logprobs)
            if finish:
                continue
            if pulled:
                self._blocks.pool.rename(incoming.pool_holder, sequence.holder)
                sequence.pages, pulled = pulled, []
                sequence.hashes = incoming.hashes
                sequence.sealed = len(incoming.hashes)
                sequence.computed = len(prefill.token_ids)
                self._scheduler.join(sequence)
            else:
                self._scheduler.add(sequence)
        self._transport.send(
            prefill.router.endpoint,
            Admitted(
                prefill.request,
                prefill.attempt,
                incoming.exposed_seconds,
                incoming.reserved - incoming.arrived,
                incoming.total - incoming.skipped,
                incoming.skipped,
                incoming.bytes_read,
                incoming.handoff.cached_tokens,
            ),
        )
        frames.send(self._transport, self._state())

    # --- steps ---------------------------------------------------------------------------------

    def _commit(self, result: StepResult, now: float) -> None:
        frames = Frames()
        self._rates.step(result.step.tokens, result.seconds)
        for sequence in self._scheduler.all:
            if sequence.cancelled:
                self._end(sequence)
        if self._alone.take(result):
            return
        for index, part in enumerate(result.step.slices):
            if part.sequence.cancelled:
                continue
            error = result.error or result.drawn[index].error
            if error:
                self._fail(part.sequence, error, retryable=bool(result.error))
            else:
                self._computed(part, result.drawn[index], frames, now)
        frames.send(self._transport, self._state())

    def _computed(self, part: Slice, drawn: Drawn, frames: Frames, now: float) -> None:
        sequence = part.sequence
        self._blocks.computed(part)
        position = len(sequence.token_ids)
        if sequence in self._scheduler.filling:
            sequence.prompt_logprobs += drawn.prompt_logprobs
            if sequence.computed < position:
                return
            if position == len(sequence.prefill.token_ids):  # not a fork, not computed again
                frames.prompt(sequence, now)
            if not part.draw:
                for choice in sequence.choices:  # max_tokens 0: the prompt was only scored
                    frames.token(sequence, choice, position, -1, "length", None)
                self._end(sequence)
                return
            self._scheduler.filled(sequence)
        self._drawn(part, drawn, frames)

    def _drawn(self, part: Slice, drawn: Drawn, frames: Frames) -> None:
        """Append each choice's token; a prompt's choices part ways here."""
        sequence = part.sequence
        position = len(sequence.token_ids)
        going_on: list[tuple[int, int]] = []
        for choice, (token_id, logprobs) in zip(part.draw, drawn.pairs, strict=True):
            finish = finish_reason(sequence, token_id, self._context_length)
            frames.token(sequence, choice, position, token_id, finish, logprobs)
            self._generated += 1
            if not finish:
                going_on.append((choice, token_id))
        if not going_on:
            self._end(sequence)
            return
        for choice, token_id in going_on[1:]:
            tokens = [*sequence.token_ids, token_id]
            fork = Sequence(sequence.prefill, [choice], tokens, arrived=sequence.arrived)
            fork.started = sequence.started
            self._scheduler.add(fork)
        choice, token_id = going_on[0]
        if sequence.choices != [choice]:
            holder = sequence.holder
            sequence.choices = [choice]
            if sequence.holder != holder:
                self._blocks.pool.rename(holder, sequence.holder)
        sequence.token_ids.append(token_id)

    def _fail(self, sequence: Sequence, reason: str, retryable: bool) -> None:
        self._failures += 1
        prefill = sequence.prefill
        self._transport.send(
            prefill.router.endpoint, Failed(prefill.request, prefill.attempt, reason, retryable)
        )
        self._end(sequence)

    # --- what is told --------------------------------------------------------------------------

    def _state(self) -> WorkerState:
        pool = self._blocks.pool
        scheduler, waiting = self._scheduler, len(self._reader.waiting)
        return WorkerState(
            running=len(scheduler.running) + len(scheduler.filling),
            waiting=len(scheduler.waiting) + waiting,
            waiting_tokens=scheduler.waiting_tokens,
            free_pages=pool.available,
            held_pages=pool.held,
            quarantined_pages=pool.quarantined,
            pulling=len(self._reader.incoming) - waiting,
            step_seconds=self._rates.step_seconds,
            tokens_per_second=self._rates.tokens_per_second,
        )

    def _counters(self) -> dict[str, float]:
        counters: dict[str, float] = {
            "tokens_generated": self._generated,
            "tokens_computed": self._rates.tokens,
            "steps": self._rates.steps,
            "steps_ahead": self._flights.ahead,
            "step_seconds_total": self._rates.seconds,
            "failures": self._failures,
            "preemptions": self._scheduler.preemptions,
            "evictions": self._blocks.pool.evictions,
            "pulled_bytes": self._reader.bytes_read,
            "longest_gap_seconds": self._pulse.take_longest_gap(),
        }
        for (state, event), count in self._reader.moves.counts.items():
            counters[f"handover {state.value}: {event.value}"] = count
        for offence, count in self._reader.refused_words.items():
            counters[f"refused words: {offence}"] = count
        return counters
