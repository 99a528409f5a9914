"""The NIXL plane's own promises: generations before and after, lanes told, what agents cost."""

import importlib.util
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from unittest import mock

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("nixl") is None, reason="nixl is not installed"
)

from penstock.kvtransfer import nixl_generations  # noqa: E402
from penstock.kvtransfer.nixl_generations import (  # noqa: E402
    generation_rows,
    group_words,
    groups_of,
)
from penstock.kvtransfer.nixl_reads import PIECES_PER_POST, breaks_of, split  # noqa: E402
from penstock.kvtransfer.plane import STALE, PlaneError  # noqa: E402
from support.nixl_pair import Pair  # noqa: E402


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    opened: list[Pair] = []
    yield opened
    for pair in opened:
        pair.close()


@given(st.integers(1, 5000), st.sampled_from([0, 32 << 10]), st.data())
def test_groups_hold_the_generations_asked_for_and_nothing_outside(
    page_count: int, little: int, data: st.DataObject
) -> None:
    pages = data.draw(st.lists(st.integers(0, page_count - 1), min_size=1, max_size=90))
    generations = numpy.arange(page_count) + 1000
    rows = generation_rows(0, page_count)
    starts = [start + at * size for start, size, _, _, count in rows for at in range(count)]
    assert all(0 <= start <= page_count * 8 - group_words(page_count) * 8 for start in starts)
    # Pages of one byte: the array is read whole only where it is little.
    with mock.patch.object(nixl_generations, "LITTLE", little):
        groups = groups_of(numpy.array(pages, dtype=numpy.int32), page_count, 1)
    if groups.whole:
        assert groups.room * 64 >= page_count
        landed = generations
    else:
        words = group_words(page_count)
        landed = numpy.zeros(groups.room * 64, dtype=numpy.int64)
        for rank, number in enumerate(groups.numbers.tolist()):
            first = starts[number] // 8
            landed[rank * 64 : rank * 64 + words] = generations[first : first + words]
        assert (numpy.diff(groups.numbers) > 0).all()
    assert landed[groups.places].tolist() == [page + 1000 for page in pages]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=60), st.integers(1, 100_000))
def test_parts_cover_a_read_and_hold_a_bounded_number_of_pieces(
    lengths: list[int], most: int
) -> None:
    # Runs of the given lengths, each beginning somewhere else on both sides.
    remote = numpy.concatenate([numpy.arange(n + 1) + 1000 * at for at, n in enumerate(lengths)])
    local = numpy.arange(len(remote)) * 1
    breaks = breaks_of(remote.astype(numpy.int32), local.astype(numpy.int32))
    ends = split(len(remote), breaks, most)
    assert ends[-1] == len(remote) and sorted(set(ends)) == ends
    assert len(breaks) + 1 == len(lengths)
    for start, end in zip([0, *ends], ends, strict=False):
        assert end - start <= max(1, most)
        found = numpy.count_nonzero(numpy.diff(remote[start:end]) != 1) + 1
        assert found <= PIECES_PER_POST


# Pool sizes: less than a group, no multiple of one, whole groups, read whole or by groups.
@pytest.mark.parametrize("page_count", [1, 13, 64, 70, 200, 6000])
@pytest.mark.parametrize("page_bytes", [64, 16 << 10])
def test_a_read_names_the_generations_it_expects(
    pairs: list[Pair], page_count: int, page_bytes: int
) -> None:
    pairs.append(pair := Pair(page_bytes, page_count))
    counters = pair.holder.memory.generations
    for page in range(page_count):
        counters[page] = 3 * page + 1
    random.seed(page_count)
    for size in {1, min(8, page_count), min(9, page_count), min(150, page_count)}:
        remote = random.sample(range(page_count), size)
        remote[0] = page_count - 1 if page_count - 1 not in remote else remote[0]
        local = random.sample(range(page_count), size)
        expected = [3 * page + 1 for page in remote]
        pair.reader.poison()
        completion = pair.read(remote, local, expected)
        assert completion.failed == "" and completion.generations == tuple(expected)
        assert pair.same(remote, local)
        pair.reader.poison()
        for wrong in (0, -1):
            stale = list(expected)
            stale[wrong] += 1
            ticket = pair.reader.plane.read("holder", remote, local, stale)
            completion = pair.settle(ticket)
            assert completion.failed == STALE and completion.quiet
            assert pair.reader.plane.quiet(ticket) and not pair.reader.plane.busy
        assert pair.reader.poisoned


def test_expected_generations_that_are_none_are_refused(pairs: list[Pair]) -> None:
    pairs.append(pair := Pair(4096, 8))
    for expected in ([1], [1, 2, 3], [-1, 0], [2**64, 0]):
        with pytest.raises(PlaneError, match="expected generations"):
            pair.reader.plane.read("holder", [1, 2], [1, 2], expected)
    assert not pair.reader.plane.busy
    assert pair.read([1, 2], [1, 2], [0, 0]).failed == ""


def test_generations_raised_during_a_read_are_those_reported(pairs: list[Pair]) -> None:
    pairs.append(pair := Pair(64 << 10, 300))
    ticket = pair.reader.plane.read("holder", list(range(300)), list(range(300)), [0] * 300)
    first = pair.holder.bytes[0]
    pair.until(lambda: bool((pair.reader.bytes[0] == first).all()), "the first page")
    assert not pair.reader.of(ticket)  # 19 MB: not read in one call
    pair.holder.memory.generations[299] += 1
    assert pair.settle(ticket).generations == (0,) * 299 + (1,)


def test_many_reads_in_flight_do_not_mix_their_generations(pairs: list[Pair]) -> None:
    pairs.append(pair := Pair(16 << 10, 1500))
    for page in range(1500):
        pair.holder.memory.generations[page] = page * 7
    tickets = {
        pair.reader.plane.read("holder", [page, 1499 - page], [2 * page, 2 * page + 1]): page
        for page in range(700)
    }
    for ticket, page in tickets.items():
        assert pair.settle(ticket).generations == (page * 7, (1499 - page) * 7)
    assert not pair.reader.plane.busy


LANES = """
import sys
from support.nixl_pair import End, Pair
alone = End(4096, 1)
print(alone.plane.path)
alone.close()
pair = Pair(16 << 10, 32)
assert pair.read([1, 2], [3, 4]).failed == "" and pair.same([1, 2], [3, 4])
print(pair.reader.plane.path)
pair.close()
"""


@pytest.mark.parametrize(
    ("wanted", "lanes"),
    [
        (None, ["same host: tcp cma"]),
        ("tcp", ["same host: tcp)"]),
        ("tcp,cma", ["same host: tcp cma"]),
        ("^cma", ["same host: tcp)"]),
    ],
)
def test_the_path_names_the_lanes_ucx_really_chose(wanted: str | None, lanes: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "UCX_TLS"}
    environment |= {"UCX_TLS": wanted} if wanted else {}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    told = subprocess.run(
        [sys.executable, "-c", LANES], env=environment, capture_output=True, text=True, timeout=60
    )
    assert told.returncode == 0, told.stderr
    before, after = told.stdout.strip().splitlines()[-2:]
    assert f"UCX_TLS={wanted or 'all'}, no connection made yet" in before
    assert all(lane in after for lane in lanes), after
    assert ("cma" in after) == (wanted in (None, "tcp,cma"))
