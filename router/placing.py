"""Places requests at workers, and places them again where those are lost. Pure.

A new request is placed at once. What is to be placed again waits in a line (`line.py`) and is
placed oldest first, in turns of a bounded size between which the loop does everything else: when
a worker dies, thousands may wait. A request that finds no worker is stranded: it is tried again
when the fleet changes, and fails when it has waited for `failover_seconds`.

    placed --worker lost, attempt failed, words missing--> in line --its turn--> placed
                                                             ^  |
                                        the fleet changed ---+  +--no worker--> stranded --> failed

Until its turn comes an old attempt stays what it was: words of its other worker are taken, for a
token is the same whoever says it.
"""

from collections.abc import Callable
from itertools import takewhile

from ..protocol.messages import Cancel
from ..protocol.seams import Transport
from .fleet import Fleet
from .flow_numbers import FlowCounters, FlowSettings
from .guard import Guard
from .line import Line
from .placement import InFlight, Phase, Placement
from .places import Places
from .request import Refusal

# What a step costs, in tokens of a prompt that is sent once more.
LOOK_TOKENS = 100
TAKE_BACK_TOKENS = 1000
PLACE_TOKENS = 3000
RETRY_SECONDS = 1.0  # between tries of what is stranded, should nothing have changed

Fail = Callable[[InFlight, int, str], None]  # with this status and sentence
ReportLost = Callable[[InFlight, Placement], None]


class Placing:
    """The placements of all requests of one router."""

    def __init__(
        self,
        transport: Transport,
        fleet: Fleet,
        settings: FlowSettings,
        counters: FlowCounters,
        fail: Fail,
        report_lost: ReportLost,
    ):
        self._transport = transport
        self._fleet = fleet
        self._settings = settings
        self._counters = counters
        self._fail = fail
        self._report_lost = report_lost
        self.guard = Guard()
        self.places = Places(fleet, settings, counters)
        self.in_flight: dict[int, InFlight] = {}
        self.leaving = False  # told to stop: what finds no worker now ends at once
        self._line = Line()
        self._placed = 0  # placements so far
        self._stranded: dict[int, InFlight] = {}  # those that wait longest first
        self._tried = -1  # the fleet's revision when the stranded were last tried
        self._retry_at = 0.0

    @property
    def behind(self) -> bool:
        """Something waits for a turn."""
        return len(self._line) > 0

    # --- one placement -------------------------------------------------------------------------

    def place(self, flight: InFlight, now: float) -> bool:
        """Send its first unplaced group of choices to workers. False: there is no route."""
        if flight.attempts == 0 and not self._bound_first(flight):
            return True  # it has ended
        group = flight.unplaced[0]
        emitted = flight.progress[group[0]].emitted
        prompt = flight.submission.token_ids
        token_ids = prompt + emitted if emitted else prompt
        route = self.places.find(flight, token_ids)
        if route is None:
            return False
        flight.unplaced.pop(0)
        flight.unplaced_since = 0.0
        self._stranded.pop(flight.id, None)
        flight.attempts += 1
        self._placed += 1
        for choice in group:
            flight.progress[choice].placed(now)
        placement = Placement(flight.attempts, set(group), route, number=self._placed)
        flight.placements[placement.attempt] = placement
        self.places.book(flight, placement, len(token_ids))
        message = flight.prefill(placement, self._transport.me, token_ids)
        self._transport.send(route.prefill, message)
        return True

    def _bound_first(self, flight: InFlight) -> bool:
        """Taken while no worker was known: now there is something to be bounded by."""
        try:
            flight.submission = self.places.bounded(flight.submission)
        except Refusal as refusal:
            self._fail(flight, refusal.status, refusal.reason)
            return False
        return True

    def cancel(self, flight: InFlight, placement: Placement) -> None:
        """Nothing of this attempt is wanted any more, at any worker."""
        for endpoint in sorted({placement.route.prefill, placement.route.decode}):
            if endpoint in self._fleet.workers:
                self._transport.send(endpoint, Cancel(flight.id, placement.attempt))

    def cancel_choice(self, flight: InFlight, placement: Placement, choice: int) -> None:
        """The other choices of the attempt go on."""
        if placement.route.decode in self._fleet.workers:
            word = Cancel(flight.id, placement.attempt, choice)
            self._transport.send(placement.route.decode, word)

    def remove(self, flight: InFlight, placement: Placement, phase: Phase) -> None:
        placement.move(phase)
        del flight.placements[placement.attempt]
        self.places.unbook(flight, placement, placement.route.prefill)
        self.places.unbook(flight, placement, placement.route.decode)

    def forget(self, flight: InFlight) -> None:
        """It has ended. Where it stands in the line it is passed over."""
        self.in_flight.pop(flight.id, None)
        self._stranded.pop(flight.id, None)

    # --- into the line -------------------------------------------------------------------------

    def worker_lost(self, endpoint: str) -> None:
        """Everything that depends on this worker is to be placed again."""
        self._line.lose(endpoint, self._placed, self.in_flight)

    def again(self, flight: InFlight, placement: Placement, only: set[int] | None = None) -> None:
        """Its open choices, or `only` those of them, are to go on elsewhere."""
        if flight.placements.get(placement.attempt) is placement:  # else it has ended meanwhile
            placement.lost |= placement.choices if only is None else only
            self._line.add(flight.id)

    def strand(self, flight: InFlight, now: float) -> None:
        """There is no route for it now."""
        flight.unplaced_since = flight.unplaced_since or now
        self._stranded[flight.id] = flight

    def tick(self, now: float) -> None:
        """Those that are stranded are tried again where the fleet has changed; those that have
        waited too long are tried for the last time."""
        if self._fleet.revision != self._tried or now >= self._retry_at:
            self._tried, self._retry_at = self._fleet.revision, now + RETRY_SECONDS
            self._line.add_all(self._stranded)
        else:
            late = takewhile(lambda one: self._too_late(one, now), self._stranded.values())
            self._line.add_all(one.id for one in late)

    def _too_late(self, flight: InFlight, now: float) -> bool:
        patience = 0.0 if self.leaving else self._settings.failover_seconds
        return now >= (flight.unplaced_since or now) + patience

    # --- out of the line -----------------------------------------------------------------------

    def turn(self, now: float, budget: int) -> None:
        """Attend to the oldest in the line until `budget` tokens are spent, or nobody is left.

        One step is always made, whatever it costs.
        """
        while budget > 0 and (request := self._line.oldest()) is not None:
            budget -= LOOK_TOKENS
            flight = self.in_flight.get(request)
            if flight is not None:
                budget -= self._attend(flight, now)

    def _attend(self, flight: InFlight, now: float) -> int:
        """One step; what it cost. A fault in it ends this request alone."""
        cost = self.guard.run(lambda: self._step(flight, now), "request ended", flight.id)
        if cost is None:
            reason = "the router met a fault of its own when it placed this request again"
            self.guard.run(lambda: self._fail(flight, 500, reason), "its end", flight.id)
            self.forget(flight)
        return cost or 0

    def _step(self, flight: InFlight, now: float) -> int:
        """Take one lost attempt back, or place one group of choices; more is for the next step."""
        for placement in list(flight.placements.values()):
            for endpoint in self._line.lost_under(placement):
                if placement.depends_on(endpoint):
                    placement.lost |= placement.choices
                elif not flight.reported:
                    self._report_lost(flight, placement)
            if placement.lost and flight.placements.get(placement.attempt) is placement:
                self._take_back(flight, placement)
                return TAKE_BACK_TOKENS
        if not flight.unplaced:
            return 0
        if self.place(flight, now):
            if flight.unplaced:
                self._line.add(flight.id)
        elif self._too_late(flight, now):
            self._fail(flight, 503, self.places.why_none(flight.submission.model))
        else:
            self.strand(flight, now)
        return PLACE_TOKENS + flight.prompt_length

    def _take_back(self, flight: InFlight, placement: Placement) -> None:
        """Of this attempt the choices that were lost."""
        lost, placement.lost = placement.lost & placement.choices, frozenset()
        if lost == placement.choices:
            self.cancel(flight, placement)
            self.remove(flight, placement, Phase.GONE)
        else:
            placement.choices -= lost
            for choice in sorted(lost):
                self.cancel_choice(flight, placement, choice)
        self._counters.replaced += len(lost)
        tries = max((flight.progress[choice].tries for choice in lost), default=0)
        if tries >= self._settings.max_attempts:
            self._fail(flight, 503, f"{tries} attempts to answer it failed")
            return
        flight.unplaced += flight.regroup(lost)
        self._line.add(flight.id)
