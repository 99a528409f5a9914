"""The simulator: a fixed set of seeds holds every invariant and visits every move; it replays."""

import os
import subprocess
import sys

import pytest

from penstock.kvtransfer.moves import HOLDER_MOVES, READER_MOVES
from penstock.simulation.report import Tally, describe, replay_command
from penstock.simulation.schedule import level_of, play

SEEDS = 600
PART = 100


@pytest.fixture(scope="module")
def tally() -> Tally:
    """Filled by the tests of the fixed set, and judged after them."""
    return Tally()


@pytest.mark.parametrize("first", range(0, SEEDS, PART))
def test_schedules_hold_every_invariant(tally, first):
    for seed in range(first, first + PART):
        outcome = play(seed)
        assert not outcome.violation, f"{replay_command(seed, outcome.level)}: {outcome.violation}"
        tally.add(outcome)


def test_every_row_of_the_move_table_was_visited(tally):
    if tally.schedules < SEEDS:
        pytest.skip("needs the whole fixed set before it")
    rows = [f"{state.value}: {event.value}" for state, event in (*HOLDER_MOVES, *READER_MOVES)]
    assert [row for row in rows if not tally.moves.get(row)] == []


def test_every_kind_of_fault_was_injected(tally):
    if tally.schedules < SEEDS:
        pytest.skip("needs the whole fixed set before it")
    kinds = (
        "cancel, choice stopped, burst of requests, crash, restart at once, "
        "crash between two words, incompatible worker, confused holder, hang, slow node, "
        "router restart, clock stall, engine held, plane held, step failed, read failed, "
        "read refused, read delayed, peer refused by the plane, bytes after a failure, "
        "bytes flipped, link lost, one-way partition, partition, word doubled, word lost, "
        "word overtaken, word lost in a partition"
    )
    assert sorted(tally.faults) == sorted(kinds.split(", "))
    assert tally.requests["answered"] > tally.requests["asked"] / 2


def test_levels_are_mixed_and_half_of_the_seeds_are_at_the_worst():
    assert [level_of(seed) for seed in range(4)].count(2) == 2
    assert {level_of(seed) for seed in range(4)} == {0, 1, 2}
    assert replay_command(0, level_of(0)) == "penstock simulate --faults --seed 0"
    assert replay_command(0, 1) == "penstock simulate --faults --seed 0 --level 1"


def simulate(hash_seed: int, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    command = [sys.executable, "-P", "-m", "penstock", "simulate", "--faults", *arguments]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return ran.stdout


@pytest.mark.parametrize("seed", [3, 17, 38])
def test_a_seed_replays_word_for_word_in_every_process(seed):
    one, other = (simulate(hash_seed, "--seed", str(seed)) for hash_seed in (1, 2))
    assert one == other
    said = one.splitlines()[-1]
    assert said.startswith(f"seed {seed} level {level_of(seed)} fingerprint ")
    assert f"{play(seed).fingerprint:08x}" in said, "without its log it is the same schedule"


def test_seeds_differ():
    assert len({play(seed).fingerprint for seed in range(8)}) == 8


def test_many_processes_play_the_same_schedules_as_one():
    one, two = (simulate(0, "--seeds", "8", "--first-seed", "5", "--jobs", n) for n in "12")
    assert [line for line in one.splitlines() if not line.startswith("seconds")] == [
        line for line in two.splitlines() if not line.startswith("seconds")
    ]
    assert "schedules   8" in one and "violations  0" in one
    assert "reader  pulling -> complete" in one and "least visited" in one


def test_a_violation_is_told_with_the_command_that_plays_it_again():
    tally = Tally()
    outcome = play(4)
    outcome.violation = "Violation: page 3 is written by two"
    tally.add(outcome)
    told = describe(tally, 1.0, 1)
    assert "violations  1\n  Violation: page 3 is written by two\n    penstock simulate" in told
    assert told.endswith("penstock simulate --faults --seed 4")
