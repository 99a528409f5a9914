"""The contract of kvtransfer/plane.py, on every plane, between real processes."""

import importlib.util
import os
import random
import signal
from collections.abc import Iterator

import pytest

from penstock.kvtransfer.host_memory import HostMemory
from penstock.kvtransfer.open import open_plane
from penstock.kvtransfer.plane import STALE, PlaneError, PlaneSettings
from support.plane_world import (
    PAGE_BYTES,
    PAGE_COUNT,
    World,
    descriptors,
    resident_bytes,
    until,
)

needs_nixl = pytest.mark.skipif(
    importlib.util.find_spec("nixl") is None, reason="nixl is not installed"
)
PLANES = [
    pytest.param("nixl", marks=needs_nixl),
    pytest.param("nixl-tcp", marks=needs_nixl),  # what it would take between hosts
    "tcp",
    "zmq",
    "zmq-curve",
    "shm",
]
EVERY_PAGE = list(range(PAGE_COUNT))


@pytest.fixture(params=PLANES)
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    if request.param == "nixl-tcp":
        monkeypatch.setenv("UCX_TLS", "tcp")
    world = World(request.param)
    yield world
    world.close()


def shuffled(count: int, seed: int) -> list[int]:
    return random.Random(seed).sample(EVERY_PAGE, count)


@pytest.mark.parametrize(
    ("remote", "local"),
    [
        ([5], [1]),
        (list(range(10, 60)), list(range(300, 350))),
        (list(range(60, 10, -1)), list(range(300, 350))),
        (shuffled(700, 1), shuffled(700, 2)),
        (EVERY_PAGE, EVERY_PAGE),
    ],
    ids=["one", "contiguous", "backwards", "scattered", "every"],
)
def test_bytes_arrive_where_they_were_wanted_and_nowhere_else(
    world: World, remote: list[int], local: list[int]
) -> None:
    peer = world.peer()
    world.plane.add_peer("tcp://peer:1", 1, peer.metadata())
    peer.ask("rewrite", page=remote[0])
    world.poison()
    ticket = world.plane.read("tcp://peer:1", remote, local)
    assert world.plane.busy
    completion = world.settle(ticket)
    assert completion.failed == "" and completion.quiet and world.plane.quiet(ticket)
    assert completion.generations == (1,) + (0,) * (len(remote) - 1)
    assert world.local(local[0]) == peer.expected(remote[0], generation=1)
    for theirs, ours in list(zip(remote, local, strict=True))[1:]:
        assert world.local(ours) == peer.expected(theirs)
    assert world.poisoned(sorted(set(EVERY_PAGE) - set(local)))
    assert not world.plane.busy


def test_generations_are_those_after_the_data(world: World) -> None:
    """A page rewritten during the read: other bytes than the old ones never go without notice."""
    peer = world.peer()
    world.plane.add_peer("tcp://peer:1", 1, peer.metadata())
    noticed = 0
    for turn in range(12):
        page = 2000 + turn
        remote = [page, *range(1500), page + 100]
        ticket = world.plane.read("tcp://peer:1", remote, list(range(len(remote))))
        world.pump()
        peer.tell("rewrite", page=page)
        peer.tell("rewrite", page=page + 100)
        completion = world.settle(ticket)
        for _ in range(2):
            peer.answer()
        assert completion.failed == ""
        for place in (0, len(remote) - 1):
            if world.local(place) != peer.expected(remote[place]):
                assert completion.generations[place] == 1
                noticed += 1
    # Raised before the read: seen by every read after it.
    completion = world.read("tcp://peer:1", [2000, 0], [0, 1])
    assert completion.generations == (1, 0)


@pytest.mark.parametrize("place", [0, 1000, 1999], ids=["first", "middle", "last"])
def test_pages_that_were_granted_again_move_no_byte(world: World, place: int) -> None:
    peer = world.peer()
    world.plane.add_peer("tcp://peer:1", 1, peer.metadata())
    remote, local = EVERY_PAGE[100:2100], EVERY_PAGE[:2000]
    peer.ask("rewrite", page=remote[place])
    world.poison()
    ticket = world.plane.read("tcp://peer:1", remote, local, [0] * len(remote))
    completion = world.settle(ticket)
    assert completion.failed == STALE and completion.generations == ()
    until(lambda: world.plane.quiet(ticket), world.pump, "quiet")
    # The same pages at once, at what they are now: nothing of the refused read comes between.
    now = [int(page == remote[place]) for page in remote]
    completion = world.settle(world.plane.read("tcp://peer:1", remote[:5], local[2:7], now[:5]))
    assert completion.failed == "" and completion.generations == tuple(now[:5])
    for _ in range(200):
        world.pump()
    assert world.poisoned(sorted(set(EVERY_PAGE) - set(local[2:7])))
    with pytest.raises(PlaneError, match="expected generations"):
        world.plane.read("tcp://peer:1", [0, 1], [0, 1], [0])
    completion = world.settle(world.plane.read("tcp://peer:1", remote, local, now))
    assert completion.failed == "" and completion.generations == tuple(now)
    assert world.local(local[place]) == peer.expected(remote[place], generation=1)


def test_what_cannot_be_read_is_refused_before_any_byte_moves(world: World) -> None:
    peer = world.peer()
    world.plane.add_peer("tcp://peer:1", 1, peer.metadata())
    world.poison()
    for remote, local, sentence in [
        ([PAGE_COUNT], [0], "outside"),
        ([-1], [0], "outside"),
        ([0], [PAGE_COUNT], "outside"),
        ([0], [-1], "outside"),
        ([2**40], [0], "outside"),
        ([0, 1], [0], "cannot go"),
        ([0, 1], [3, 3], "twice"),
        ([], [], "no pages"),
    ]:
        with pytest.raises(PlaneError, match=sentence):
            world.plane.read("tcp://peer:1", remote, local)
    with pytest.raises(PlaneError, match="not a known peer"):
        world.plane.read("tcp://peer:2", [0], [0])
    world.plane.remove_peer("tcp://peer:1")
    world.plane.remove_peer("tcp://peer:1")
    with pytest.raises(PlaneError, match="not a known peer"):
        world.plane.read("tcp://peer:1", [0], [0])
    world.pump()
    assert world.poisoned(EVERY_PAGE) and not world.completions


def test_a_page_is_the_target_of_one_read_at_a_time(world: World) -> None:
    peer = world.peer()
    world.plane.add_peer("tcp://peer:1", 1, peer.metadata())
    ticket = world.plane.read("tcp://peer:1", [1, 2], [1, 2])
    with pytest.raises(PlaneError, match="still the target"):
        world.plane.read("tcp://peer:1", [3], [2])
    assert world.settle(ticket).failed == ""
    assert world.read("tcp://peer:1", [3], [2]).failed == ""
    assert world.local(2) == peer.expected(3)


def test_metadata_that_is_none_is_refused(world: World) -> None:
    peer = world.peer()
    good = peer.metadata()
    for bad in [b"", b"\x93", b"garbage" * 20, good[:-1], good[: len(good) // 2], b"\x00" + good]:
        with pytest.raises(PlaneError):
            world.plane.add_peer("tcp://peer:1", 1, bad)
    other = HostMemory(PAGE_BYTES * 2, 4)
    plane = open_plane(world.plane_name, PlaneSettings(other.memory, "other", curve=world.keys))
    with pytest.raises(PlaneError, match="pages of"):
        world.plane.add_peer("tcp://peer:1", 1, plane.metadata())
    plane.close()
    other.close()
    world.plane.add_peer("tcp://peer:1", 1, good)
    assert world.read("tcp://peer:1", [4], [4]).failed == ""


def test_a_dead_peer_fails_its_reads_and_nobody_elses(world: World) -> None:
    dead, alive = world.peer(seed=1), world.peer(seed=2)
    world.plane.add_peer("tcp://dead:1", 1, dead.metadata())
    world.plane.add_peer("tcp://alive:1", 1, alive.metadata())
    assert world.read("tcp://dead:1", [0], [0]).failed == ""
    ticket = world.plane.read("tcp://alive:1", EVERY_PAGE[:1000], EVERY_PAGE[:1000])
    dead.kill()
    for _ in range(2):
        assert world.read_or_refusal("tcp://dead:1", [1], [2000]) != ""
    completion = world.settle(ticket)
    assert completion.failed == ""
    assert world.local(999) == alive.expected(999)
    assert world.read("tcp://alive:1", [1], [2500]).failed == ""


def test_a_peer_killed_before_first_contact(world: World) -> None:
    peer = world.peer()
    metadata = peer.metadata()
    peer.kill()
    try:
        world.plane.add_peer("tcp://peer:1", 1, metadata)
    except PlaneError:
        return
    assert world.read_or_refusal("tcp://peer:1", [0], [0]) != ""


def test_a_peer_killed_in_the_middle_of_reads(world: World) -> None:
    for turn in range(3):
        peer, endpoint = world.peer(), f"tcp://peer:{turn}"
        world.plane.add_peer(endpoint, 1, peer.metadata())
        assert world.read(endpoint, [0], [0]).failed == ""
        first = world.plane.read(endpoint, EVERY_PAGE[:1300], EVERY_PAGE[:1300])
        second = world.plane.read(endpoint, EVERY_PAGE[1300:], EVERY_PAGE[1300:])
        for _ in range(turn):
            world.pump()
        open_reads = [ticket for ticket in (first, second) if not world.of(ticket)]
        peer.kill()
        assert open_reads
        for ticket in open_reads:
            assert world.settle(ticket).failed != ""
        until(lambda t=open_reads: all(map(world.plane.quiet, t)), world.pump, "quiet")
        world.poison()
        for _ in range(200):
            world.pump()
        assert world.poisoned(EVERY_PAGE)
        assert [len(world.of(ticket)) for ticket in (first, second)] == [1, 1]


def test_a_peer_that_started_again_replaces_the_old_one(world: World) -> None:
    for incarnation in range(1, 4):
        peer = world.peer(seed=incarnation)
        metadata = peer.metadata()
        world.plane.add_peer("tcp://peer:1", incarnation, metadata)
        world.plane.add_peer("tcp://peer:1", incarnation, metadata)
        assert world.read("tcp://peer:1", [9], [9]).failed == ""
        assert world.local(9) == peer.expected(9)
        peer.kill()
        with pytest.raises(PlaneError, match="newer"):
            world.plane.add_peer("tcp://peer:1", incarnation - 1, metadata)


@pytest.mark.parametrize("known", [True, False], ids=["connected", "first-contact"])
@pytest.mark.parametrize("removed", [False, True], ids=["abandoned", "removed"])
def test_nothing_lands_in_quiet_pages_when_a_stopped_peer_goes_on(
    world: World, known: bool, removed: bool
) -> None:
    peer = world.peer()
    metadata = peer.metadata()
    world.plane.add_peer("tcp://peer:1", 1, metadata)
    if known:
        assert world.read("tcp://peer:1", [0], [0]).failed == ""
    peer.signal(signal.SIGSTOP)
    pages = EVERY_PAGE[:2000]
    ticket = world.plane.read("tcp://peer:1", pages, pages)
    for _ in range(3):
        world.pump()
    assert not world.of(ticket) and world.plane.busy
    if removed:
        world.plane.remove_peer("tcp://peer:1")
    else:
        world.plane.abandon(ticket)
    completion = world.settle(ticket)
    assert completion.failed != ""
    assert completion.quiet == world.plane.quiet(ticket)
    if not completion.quiet:
        world.plane.add_peer("tcp://peer:1", 1, metadata)
        with pytest.raises(PlaneError, match="still the target"):
            world.plane.read("tcp://peer:1", [0], [0])
        peer.signal(signal.SIGCONT)
        until(lambda: world.plane.quiet(ticket), world.pump, "quiet")
    world.poison()
    peer.signal(signal.SIGCONT)
    world.plane.add_peer("tcp://peer:1", 1, metadata)
    assert world.read("tcp://peer:1", [5], [2600]).failed == ""
    for _ in range(200):
        world.pump()
    assert world.poisoned(pages)
    assert world.local(2600) == peer.expected(5)
    assert len(world.of(ticket)) == 1
    world.plane.abandon(ticket)  # of a read that has ended: nothing


def test_a_peer_without_progress_holds_nobody_else_up(world: World) -> None:
    deaf, alive = world.peer(seed=1), world.peer(seed=2)
    world.plane.add_peer("tcp://deaf:1", 1, deaf.metadata())
    world.plane.add_peer("tcp://alive:1", 1, alive.metadata())
    deaf.ask("deaf")
    ticket = world.plane.read("tcp://deaf:1", EVERY_PAGE[:1000], EVERY_PAGE[:1000])
    assert world.read("tcp://alive:1", [3], [2000]).failed == ""
    deaf.ask("metadata")
    assert world.settle(ticket).failed == ""
    assert world.local(999) == deaf.expected(999)


def test_peers_that_come_and_go_leave_nothing(world: World) -> None:
    peer = world.peer()
    metadata = peer.metadata()

    def visit() -> None:
        world.plane.add_peer("tcp://peer:1", 1, metadata)
        assert world.read("tcp://peer:1", [1], [1]).failed == ""
        world.plane.remove_peer("tcp://peer:1")

    for _ in range(20):
        visit()
    files, memory = descriptors(), resident_bytes()
    for _ in range(200):
        visit()
    until(lambda: descriptors() <= files + 4, world.pump, "the closing of descriptors")
    assert resident_bytes() < memory + (16 << 20)


def test_close_leaves_no_thread_and_no_file_behind(world: World) -> None:
    shared = set(os.listdir("/dev/shm"))
    peer = world.peer()
    world.plane.add_peer("tcp://peer:1", 1, peer.metadata())
    assert world.read("tcp://peer:1", [1], [1]).failed == ""
    left = peer.ask("exit")
    assert left["after"] == left["before"]
    peer.process.wait(timeout=20)
    assert peer.process.returncode == 0
    assert set(os.listdir("/dev/shm")) <= shared
    world.plane.close()
    world.plane.close()
