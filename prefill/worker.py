"""The prefill worker: compute prompts in chunks, publish their blocks, say the first token.

Written against the seams (clock as `now`, transport, plane, engine), so the same code runs for
real, in tests with a fake engine, and in simulation. `turn` is the whole of it.
"""

from dataclasses import dataclass

from ..engine.alone import Alone
from ..engine.chunking import Blocks
from ..engine.finish import finish_reason
from ..engine.frames import Frames
from ..engine.health import Pulse, Rates
from ..engine.inquiry import absent
from ..engine.sequence import Sequence
from ..engine.step import Drawn, Engine, Slice, StepResult
from ..kvtransfer.holder import Holder, Lease
from ..kvtransfer.moves import Event
from ..kvtransfer.plane import Plane
from ..protocol.membership import Membership
from ..protocol.messages import (
    Cancel,
    Failed,
    FirstTokens,
    Identify,
    Inquire,
    Introduce,
    Message,
    Peer,
    Prefill,
    Release,
    Renew,
    WorkerState,
)
from ..protocol.seams import Arrival, Connected, Disconnected, Received, Transport
from ..protocol.seen import Seen
from .scheduler import PrefillScheduler


@dataclass(slots=True)
class Parts:
    """What a prefill worker is made of."""

    transport: Transport
    plane: Plane
    engine: Engine
    blocks: Blocks
    scheduler: PrefillScheduler
    holder: Holder
    membership: Membership
    pulse: Pulse
    context_length: int
    vocabulary: int


class PrefillWorker:
    """Receive, decide, start, publish."""

    def __init__(self, parts: Parts):
        self._transport = parts.transport
        self._plane = parts.plane
        self._engine = parts.engine
        self._blocks = parts.blocks
        self._scheduler = parts.scheduler
        self._holder = parts.holder
        self._membership = parts.membership
        self._pulse = parts.pulse
        self._context_length = parts.context_length
        self._vocabulary = parts.vocabulary
        self._leases: dict[tuple[int, int, int], Lease] = {}  # by sequence
        self._rates = Rates()
        self._seen = Seen()  # attempts begun here
        self._failures = 0
        self._alone = Alone()
        self.stuck = ""  # which part makes no progress; then only a new incarnation helps

    def turn(self, now: float) -> float:
        """Everything that is due; returns when to come back at the latest."""
        for arrival in self._transport.receive():
            self._take(arrival, now)
        self._plane.progress()
        if (result := self._engine.finished()) is not None:
            self._pulse.step_ended(now, result.error)
            self._commit(result, now)
        due = self._holder.turn(now)
        self._end_unwanted()
        if not self._engine.busy:
            step = self._alone.next_step() or self._scheduler.next_step(
                self._holder.leased_pages, now
            )
            if step is not None:
                self._open_leases(step.slices, now)
                self._engine.start(step)
                self._pulse.step_started(now)
        idle = self._scheduler.idle and not self._holder.leases
        self.stuck = self._pulse.stuck(now, self._blocks.pool, idle)
        due = min(due, self._membership.beat(now, self._state, self._counters, self.stuck))
        if self._holder.has_published:
            due = min(due, now + self._plane.holder_poll_seconds)
        return due

    # --- messages ------------------------------------------------------------------------------

    def _take(self, arrival: Arrival, now: float) -> None:
        match arrival:
            case Received(sender, message):
                self._message(sender, message, now)
            case Connected() | Disconnected():
                was_router = self._membership.link(arrival, self._state())
                if isinstance(arrival, Disconnected):
                    self._holder.reader_lost(arrival.endpoint)
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
            case Cancel(request, attempt, -1):
                self._holder.cancel(request, attempt)
                self._drop(request, attempt)
            case Introduce() | Renew() | Release():
                self._holder.take(sender, message, now)
            case Identify():
                self._membership.take(sender, message, self._state())
            case Inquire():
                self._answer(sender, message)
            case _:
                pass  # a choice's cancel, or a word for another role

    def _answer(self, sender: Peer, inquiry: Inquire) -> None:
        """A prompt is here until it is computed and its reader has let go of it."""
        here = {
            (lease.prefill.request, lease.prefill.attempt) for lease in self._holder.leases.values()
        }
        for sequence in (*self._scheduler.waiting, *self._scheduler.started):
            if not sequence.cancelled:
                here.add((sequence.prefill.request, sequence.prefill.attempt))
        unknown = absent(inquiry, lambda request, attempt, choice: (request, attempt) in here)
        if unknown is not None:
            self._transport.send(sender.endpoint, unknown)

    def _router_lost(self, endpoint: str) -> None:
        for sequence in [*self._scheduler.waiting, *self._scheduler.started]:
            prefill = sequence.prefill
            if prefill.router.endpoint == endpoint:
                self._holder.cancel(prefill.request, prefill.attempt)
                self._drop(prefill.request, prefill.attempt)

    def _drop(self, request: int, attempt: int) -> None:
        """Forget a prompt: at once, or when the step that may be writing its pages ends."""
        sequence = self._scheduler.find(request, attempt)
        if sequence is None:
            return
        if self._engine.busy:
            sequence.cancelled = True
        else:
            self._remove(sequence)

    def _end_unwanted(self) -> None:
        """A lease that ended before its prompt was computed: nobody waits for the rest."""
        for lease in self._holder.ended:
            if lease.ended_by in (Event.EXPIRED, Event.RELEASED, Event.PEER_LOST, Event.REFUSED):
                self._drop(lease.prefill.request, lease.prefill.attempt)
            if lease.ended_by in (Event.EXPIRED, Event.PEER_LOST):
                # The reader may never have heard of it, so the router must hear it from us.
                one, reason = lease.prefill, f"hand-over: {lease.ended_by.value}"
                failed = Failed(one.request, one.attempt, reason, True)
                self._transport.send(one.router.endpoint, failed)
        self._holder.ended.clear()

    # --- steps ---------------------------------------------------------------------------------

    def _open_leases(self, slices: tuple[Slice, ...], now: float) -> None:
        """The reader hears of a request when its computation starts, to reserve and to meet us."""
        for part in slices:
            sequence = part.sequence
            if sequence.prefill.decode_at and sequence.holder not in self._leases:
                self._leases[sequence.holder] = self._holder.open(
                    sequence.prefill, sequence.cached_tokens, now
                )

    def _commit(self, result: StepResult, now: float) -> None:
        frames = Frames()
        self._rates.step(result.step.tokens, result.seconds)
        for sequence in [*self._scheduler.waiting, *self._scheduler.started]:
            if sequence.cancelled:
                self._remove(sequence)
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
        sequence.prompt_logprobs += drawn.prompt_logprobs
        if sequence.computed < len(sequence.token_ids):
            self._publish(sequence, None)
            return
        frames.prompt(sequence, now)
        first = FirstTokens(list(part.draw), list(drawn.token_ids), [], [])
        position = len(sequence.token_ids)
        if not part.draw:
            for choice in sequence.choices:  # max_tokens 0: the prompt was only scored
                frames.token(sequence, choice, position, -1, "length", None)
        for choice, (token_id, logprobs) in zip(part.draw, drawn.pairs, strict=True):
            finish = finish_reason(sequence, token_id, self._context_length)
            frames.token(sequence, choice, position, token_id, finish, logprobs)
            first.finish.append(finish)
            first.logprobs.append(logprobs)
        if "" in first.finish and not sequence.prefill.decode_at:
            self._fail(sequence, "a prefill worker was asked to answer by itself", retryable=False)
            return
        self._publish(sequence, first)
        self._remove(sequence)

    def _publish(self, sequence: Sequence, first: FirstTokens | None) -> None:
        lease = self._leases.get(sequence.holder)
        if lease is None or lease.ended_by is not None:
            return
        if first is not None:
            self._blocks.seal_tail(sequence)
        fresh = sequence.pages[len(lease.pages) : sequence.sealed]
        if fresh or first is not None:
            self._holder.publish(lease, fresh, first)

    def _fail(self, sequence: Sequence, reason: str, retryable: bool) -> None:
        self._failures += 1
        prefill = sequence.prefill
        self._holder.cancel(prefill.request, prefill.attempt, Event.COMPUTE_FAILED)
        self._transport.send(
            prefill.router.endpoint, Failed(prefill.request, prefill.attempt, reason, retryable)
        )
        self._remove(sequence)

    def _remove(self, sequence: Sequence) -> None:
        self._leases.pop(sequence.holder, None)
        self._scheduler.remove(sequence)

    # --- what is told --------------------------------------------------------------------------

    def _state(self) -> WorkerState:
        pool = self._blocks.pool
        return WorkerState(
            running=len(self._scheduler.started),
            waiting=len(self._scheduler.waiting),
            waiting_tokens=self._scheduler.waiting_tokens,
            free_pages=pool.available,
            held_pages=pool.held,
            quarantined_pages=pool.quarantined,
            leases=len(self._holder.leases),
            step_seconds=self._rates.step_seconds,
            tokens_per_second=self._rates.tokens_per_second,
        )

    def _counters(self) -> dict[str, float]:
        counters: dict[str, float] = {
            "prompt_tokens_computed": self._rates.tokens,
            "steps": self._rates.steps,
            "step_seconds_total": self._rates.seconds,
            "failures": self._failures,
            "evictions": self._blocks.pool.evictions,
            "longest_gap_seconds": self._pulse.take_longest_gap(),
        }
        for (state, event), count in self._holder.moves.counts.items():
            counters[f"handover {state.value}: {event.value}"] = count
        for offence, count in self._holder.refused_words.items():
            counters[f"refused words: {offence}"] = count
        return counters
