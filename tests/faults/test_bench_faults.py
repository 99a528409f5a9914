"""`penstock bench faults`: what it prints of its rounds, and that it plays them."""

import json

import pytest

from penstock.bench import faults
from penstock.bench.breaking import tables

STANDSTILL = {
    "promise": "F2",
    "plane": "shm",
    "kind": "cancel",
    "word": "CANCELLED",
    "seconds": 0.001,
    "late": 0.0,
    "quarantined": 0,
    "granted": 10,
    "hit": 0,
    "good": True,
}


def test_a_run_plays_its_rounds_and_keeps_them(tmp_path, capsys):
    file = tmp_path / "faults.json"
    arguments = ["--rounds", "1", "--planes", "shm", "--promises", "F1,F4", "--json", str(file)]
    assert faults.main(arguments) == 0
    kept = json.loads(file.read_text())
    assert {one["promise"] for one in kept["rounds"]} == {"F1", "F2"}
    assert {one["when"] for one in kept["rounds"] if "when" in one} == set(faults.WHEN)
    told = capsys.readouterr().out
    assert "F1: a dead holder" in told and "F4: reads that were given up" in told


@pytest.mark.parametrize("name", ["wrong", "hit", "twice", "hung", "lost", "pages"])
def test_a_broken_promise_is_the_exit_status(name):
    assert tables.kept([STANDSTILL])
    assert not tables.kept([STANDSTILL, STANDSTILL | {name: 1}])


def test_every_promise_has_its_table():
    rounds = [
        {"promise": "F1", "plane": "shm", "when": "idle", "word": "PEER_LOST", "seconds": 0.01},
        STANDSTILL,
        STANDSTILL | {"kind": "deadline", "word": "TIMED_OUT", "late": 0.002},
        {"promise": "F3", "plane": "tcp", "down": 0.2, "word": "TIMED_OUT", "late": 0.003}
        | {"good_again": 0.05, "hit": 0},
        {"promise": "F5", "plane": "shm", "ready": 0.02, "first_good": 0.05, "word": "COMPLETE"},
        {"promise": "F5", "plane": "shm", "descriptors": 0, "bytes": 4096},
        {"promise": "F7", "plane": "shm", "kind": "killed", "seconds": 0.02},
        {"promise": "F8", "plane": "shm", "ended": {"COMPLETE": 2}, "words": {"lost": 3}}
        | {"seconds": [0.1, 0.3], "hung": 0, "twice": 0, "wrong": 0},
        {"promise": "F13", "plane": "shm", "healthy": [0.01], "troubled": {"killed": [0.02]}}
        | {"lost": 0},
        {"promise": "F13", "plane": "shm", "failures": 9, "descriptors": 0, "bytes": 0}
        | {"pages": 0, "kinds": {"stale": 9}},
    ]
    made = tables.tables(rounds, ["a note"])
    titles = [table.title.partition(":")[0] for table in made]
    assert titles == ["F1", "F2", "F4", "F3", "F5", "F7", "F8", "F13", "F13"]
    assert all(table.rows and table.text() for table in made)
    assert made[0].rows[0][3:6] == [10.0, 10.0, 10.0]
    assert made[7].rows[0][5] == 2.0
    assert "a note" in made[3].notes


def test_what_is_not_there_is_named():
    with pytest.raises(SystemExit):
        faults.main(["--planes", "pigeon"])
    with pytest.raises(SystemExit):
        faults.main(["--promises", "F99"])
