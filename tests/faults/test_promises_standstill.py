"""F2 and F4: a holder that stands still, reads that are given up, pages that are granted again."""

import time

import pytest

from penstock.bench.breaking.parts import MOVES_ITSELF, NEEDS_NO_HOLDER
from penstock.bench.breaking.reader import COMPLETE
from penstock.bench.breaking.rounds import Standstill, aborted, timed_out
from penstock.kvtransfer.plane import Completion
from support.fault_planes import needs_nixl

BLOCKS = 400  # 8 MB


def check_aftermath(seen: Standstill) -> None:
    assert seen.granted > 0
    assert seen.hit == 0, f"a byte landed in {seen.hit} pages that were granted again"
    assert (seen.after.word, seen.after.wrong) == (COMPLETE, 0)


def test_f2_a_hanging_holder_is_given_up_by_our_own_deadline(scene_of, way):
    scene = scene_of(way, read_seconds=0.1)
    scene.introduce()
    seen = timed_out(scene, BLOCKS)
    assert seen.outcome is not None
    if way in NEEDS_NO_HOLDER and seen.outcome.word == COMPLETE:
        assert seen.outcome.wrong == 0
    else:
        assert seen.outcome.word == "TIMED_OUT" and seen.late >= 0
    check_aftermath(seen)


@pytest.mark.parametrize("turns", [0, 4])
def test_f4_pages_of_an_aborted_read_never_get_a_late_byte(scene_of, way, turns):
    scene = scene_of(way)
    scene.introduce()
    seen = aborted(scene, BLOCKS, turns)
    assert seen.outcome is None, "the router that cancelled is told nothing"
    if way in MOVES_ITSELF:
        assert seen.quarantined == 0
    if way == "nixl-tcp" and turns:  # the bytes themselves were under way
        assert seen.quarantined == BLOCKS, "NIXL has no way to stop a transfer"
    check_aftermath(seen)


def test_f4_a_holder_that_ends_the_lease_in_the_middle_of_a_read(scene_of, way):
    """Its pages are granted again and written at once: the reader must not believe what it got."""
    scene = scene_of(way)
    reader = scene.reader
    scene.introduce()
    for turns in range(4):
        request = scene.offer(BLOCKS)
        for _ in range(turns):
            reader.turn(time.monotonic())
        scene.holder.ask("cancel", request=request, attempt=1)
        assert scene.holder.ask("overwrite")["pages"] > 0
        outcome = reader.settle(request)
        assert outcome.word in ("EXPIRED", "STALE"), outcome
        scene.quiet_down()
    assert scene.hand_over(4).word == COMPLETE
    assert scene.holder.state()["held"] == 0


class Liar:
    """A plane that says quiet where nothing is: the mistake that F4 is about."""

    def __init__(self, plane) -> None:
        self._plane = plane

    def __getattr__(self, name: str):
        return getattr(self._plane, name)

    def quiet(self, ticket: int) -> bool:
        return True

    def progress(self) -> list[Completion]:
        found = self._plane.progress()
        return [Completion(one.ticket, one.failed, one.generations, True) for one in found]


@needs_nixl
def test_f4_the_check_sees_late_bytes_where_a_plane_lies(scene_of):
    """Over TCP NIXL's reads go on after they were given up, so a lie can be seen there."""
    scene = scene_of("nixl-tcp")
    scene.introduce()
    scene.reader.reader._plane = Liar(scene.reader.parts.plane)  # type: ignore[assignment]
    assert aborted(scene, BLOCKS, turns=4).hit > 0
