"""The line: oldest first, and which placements went down with a worker."""

import pytest

from penstock.router.line import Line
from penstock.router.placement import Placement
from penstock.router.policy import Route


def placed(number: int, prefill: str = "p", decode: str = "d") -> Placement:
    return Placement(1, {0}, Route("remote", prefill, decode, 1, 0.0), number=number)


def taken(line: Line) -> list[int]:
    out: list[int] = []
    while (one := line.oldest()) is not None:
        out.append(one)
    return out


def test_the_oldest_leaves_first_however_they_came():
    line = Line()
    line.add(7)
    line.add_all([9, 2])
    line.add(5)
    assert len(line) == 4 and taken(line) == [2, 5, 7, 9] and not line


def test_a_loss_puts_everyone_in_line_once():
    line = Line()
    line.add(2)
    line.lose("p", 0, [1, 2, 3])
    assert taken(line) == [1, 2, 3]


@pytest.mark.parametrize(
    "placement, lost",
    [
        (placed(4), ["p"]),
        (placed(5), ["p"]),
        (placed(6), []),  # made after the loss: another process answers there
        (placed(5, "x", "p"), ["p"]),
        (placed(5, "p", "p"), ["p"]),
        (placed(5, "x", "y"), []),
    ],
)
def test_what_was_placed_before_a_loss_is_lost_with_it(placement: Placement, lost: list[str]):
    line = Line()
    assert not list(line.lost_under(placement))
    line.lose("p", 5, [1])
    assert list(line.lost_under(placement)) == lost


def test_both_workers_of_a_route_may_be_lost_and_a_later_loss_counts_for_more():
    line = Line()
    line.lose("p", 3, [1])
    line.lose("d", 5, [1])
    line.lose("p", 6, [1])
    assert list(line.lost_under(placed(5))) == ["p", "d"]
    assert list(line.lost_under(placed(6))) == ["p"]


def test_losses_are_forgotten_when_all_were_looked_at():
    line = Line()
    line.lose("p", 5, [1])
    assert line.oldest() == 1 and list(line.lost_under(placed(1))) == ["p"], "it is being looked at"
    assert line.oldest() is None and not list(line.lost_under(placed(1)))
