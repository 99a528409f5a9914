"""`bench kv`: pages really move and are really checked, and what is said of the goals follows."""

import json
import subprocess

import pytest

from penstock.bench import kv
from penstock.bench.planes import across, control, load, prompts
from penstock.bench.planes.bare import Memcpy
from penstock.bench.planes.child import Commands
from penstock.bench.planes.goals import goal_table
from penstock.bench.planes.noise import Others
from penstock.bench.planes.pages import WrongBytes, chosen, fill, scattered, touch, verify
from penstock.bench.planes.pair import METHODS, Pair, PairError, Shape
from penstock.bench.planes.speed import measure, speed_tables
from penstock.kvtransfer.host_memory import HostMemory

PAGE_BYTES, PAGES = 4096, 16


@pytest.fixture
def memories():
    source, target = HostMemory(PAGE_BYTES, PAGES), HostMemory(PAGE_BYTES, PAGES)
    fill(source)
    touch(target)
    yield source, target
    source.close()
    target.close()


def test_scattered_pages_are_many_and_each_once():
    pages = scattered(100, 40, seed=3)
    assert pages == sorted(set(pages)) and len(pages) == 40 and pages[-1] < 100
    assert pages == scattered(100, 40, seed=3) != scattered(100, 40, seed=4)


def test_a_read_takes_what_it_was_told():
    assert chosen(10, {"count": 4, "seed": 0, "start": 8}) == ([8, 9], [8, 9])
    remote, local = chosen(100, {"count": 4, "seed": 0})
    assert (remote, local) == (scattered(100, 4, 0), scattered(100, 4, 1))


@pytest.mark.parametrize("offset", [0, 8, PAGE_BYTES - 1])
def test_one_wrong_byte_is_seen_and_its_page_named(memories, offset):
    source, target = memories
    for local, remote in ((2, 5), (3, 9)):
        target.page(local)[:] = source.page(remote)
    target.page(3)[offset] ^= 1
    with pytest.raises(WrongBytes, match="page 3 does not hold remote page 9"):
        verify(target, [2, 3], [5, 9])


def test_pages_that_were_checked_are_cleared(memories):
    source, target = memories
    target.page(2)[:] = source.page(5)
    verify(target, [2], [5])
    with pytest.raises(WrongBytes):
        verify(target, [2], [5])


def test_memcpy_moves_the_pages_it_was_told():
    spec = {"side": "reader", "page_bytes": PAGE_BYTES, "page_count": PAGES}
    found = Memcpy(spec, Commands()).do({"do": "read", "count": 4, "seed": 1})
    assert found and found["seconds"] > 0


SMALL = Shape(page_bytes=16 << 10, page_count=64, pages=16)


@pytest.mark.parametrize("name", ["bare socket", "bare nixl", "shm", "tcp", "nixl", "zmq-curve"])
def test_pairs_move_pages_alone_and_through_the_whole_protocol(name):
    pair = Pair(METHODS[name], SMALL)
    try:
        pair.meet().warm()
        assert pair.read(5).seconds > 0
        if not pair.method.ours:
            return
        scattered, natural = pair.hand_over(5), pair.hand_over(-1)
        assert scattered.pages == natural.pages == SMALL.pages
        assert scattered.descriptors > natural.descriptors == 1
        assert 0 < scattered.exposed <= scattered.complete
        chunked = pair.hand_over(7, parts=4, period=0.002)
        assert chunked.complete > chunked.exposed
    finally:
        pair.close()


def test_a_pair_whose_process_ends_is_said():
    pair = Pair(METHODS["shm"], SMALL).meet()
    pair.holder.process.kill()
    pair.holder.process.wait()
    with pytest.raises(PairError):
        pair.read(0)
    pair.close()


def test_bare_words_go_there_and_back():
    for words, moves, spin in control.SEQUENCES:
        asking = control.Asking(words, moves, spin)
        try:
            assert all(seconds > 0 for seconds in asking.seconds(3))
        finally:
            asking.close()


def test_the_rest_of_the_machine_is_measured():
    assert Others().cores() >= 0


def test_one_run_of_the_command(tmp_path, capsys):
    file = tmp_path / "kv.json"
    parts = "speed,pieces,overlap,checked,prompts,idle"
    few = ["--parts", parts, "--methods", "memcpy,shm", "--sizes", "64", "--rounds", "1"]
    assert kv.main(["--quick", *few, "--memory-gib", "0.1", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    for title in (*("Pages between two processes", "Checked mode", "Idle: a connected pair"), "G9"):
        assert title in printed
    assert "not run: needs" in printed  # every prompt is larger than the memory given
    kept = json.loads(file.read_text())
    ways = {(one["method"], one["way"]) for one in kept["rounds"] if one["part"] == "speed"}
    assert ways == {("memcpy", "alone"), ("shm", "alone"), ("shm", "whole")}


@pytest.mark.parametrize("wrong", ["--parts", "--methods"])
def test_what_does_not_exist_is_refused_with_what_does(wrong, capsys):
    with pytest.raises(SystemExit):
        kv.main([wrong, "nonsense"])
    assert "no 'nonsense'; parts: speed" in capsys.readouterr().err


def test_a_prompts_pages_hold_its_tokens(monkeypatch):
    model = prompts.Model("tiny", token_bytes=512, page_tokens=32)
    assert model.shape(100) == Shape(512 * 32, 4, 4, slots=32)
    monkeypatch.setattr(prompts, "MODELS", [model])
    monkeypatch.setattr(prompts, "PROMPTS", (8192, 16384))
    found = prompts.measure_prompts(["shm"], 1, memory=8192 * 512 * 2, longest=16384)
    assert [one["method"] for one in found] == ["shm", "not run"]
    assert found[0]["chunks"] == 4 and found[0]["descriptors"] == 1


def test_namespaces_that_cannot_be_made_are_said(monkeypatch):
    def fails(*_, **__):
        raise subprocess.CalledProcessError(1, "ip", stderr="Operation not permitted\n")

    monkeypatch.setattr(across.subprocess, "run", fails)
    found = across.measure_across([4096], 1 << 20, 1, ["tcp"])
    (table,) = across.refusals(found)
    assert "Operation not permitted; it needs root" in str(table.rows[0][0])


# --- the goals ------------------------------------------------------------------------------------


def record(method, way, seconds, part="speed", page_bytes=65536):
    return {
        **{"part": part, "method": method, "way": way, "page_bytes": page_bytes},
        **{"bytes": 1 << 24, "seconds": seconds, "cpu": seconds, "others_cores": 0.0},
    }


def verdicts(records):
    return {(row[0], row[1]): row[3] for row in goal_table(records).rows}


@pytest.mark.parametrize("seconds, verdict", [(1.1, "met"), (1.2, "missed")])
def test_a_ratio_is_judged_by_its_median(seconds, verdict):
    ours = record("shm", "whole", [0.1, seconds, 9.0])
    found = verdicts([record("memcpy", "alone", [1.0, 1.0, 1.0]), ours])
    assert [value for (name, _), value in found.items() if name == "G1"] == [verdict]


def test_smaller_pages_have_smaller_goals():
    for size, seconds, verdict in ((16384, 1.24, "met"), (4096, 1.5, "met"), (4096, 1.6, "missed")):
        records = [
            record("memcpy", "alone", [1.0], page_bytes=size),
            record("shm", "alone", [seconds], page_bytes=size),
        ]
        assert [v for (name, _), v in verdicts(records).items() if name == "G1"] == [verdict]


def test_what_was_not_run_is_named_and_not_judged():
    table = goal_table([])
    assert table.rows == []
    assert "G1, G10, G2, G3, G4, G5, G6, G7, G8, G9" in table.notes[-1]


def test_other_goals():
    trip = {"part": "control", "others_cores": 0.0}
    records = [
        {**trip, "method": "shm, whole", "way": "sleeping", "seconds": [104e-6]},
        {**trip, "method": "bare: zmq words, no page", "way": "sleeping", "seconds": [100e-6]},
        {"part": "idle", "method": "shm", "side": "reader", "core_share": 0.02},
        {
            **{"part": "overlap", "method": "shm", "chunks": 4, "bytes": 1 << 27},
            **{"seconds": [0.04], "exposed": [0.0101]},
        },
        {
            **{"part": "checked", "method": "shm", "page_bytes": 65536, "bytes": 1 << 24},
            **{"seconds": [1.0], "checked": [1.7], "digest_seconds_per_gb": 0.1},
        },
        {"part": "agents", "name": "start", "figure": 140.0, "bound": 150.0, "unit": "ms"},
        {"part": "agents", "name": "of which", "figure": 9.0, "bound": None, "unit": "ms"},
        record("bare nixl", "alone", [1.0], "pieces", 4096),
        record("nixl", "alone", [0.4], "pieces", 4096),
        record("nixl", "alone", [0.7], "pieces", 256),
    ]
    found = [(row[0], row[2], row[3]) for row in goal_table(records).rows]
    assert found == [
        ("G4", "4K: 2.50 (2.50)", "met"),
        ("G4", "0.0240 of 0.0419 GB/s", "met"),
        ("G6", "104 over 100 us", "met"),
        ("G7", "at most 2.00% (shm reader)", "missed"),
        ("G8", "140 ms", "met"),
        ("G8", "9.00 ms", "-"),
        ("G9", "10.1 of 10.1 ms", "met"),
        ("G10", "+70% (0%)", "missed"),
    ]


def test_tables_put_sizes_side_by_side():
    records = [
        record("memcpy", "alone", [0.01]),
        record("memcpy", "alone", [0.02], page_bytes=4096),
    ]
    speeds, costs = speed_tables("Title", records)
    assert speeds.columns == ["method", "4K", "64K"]
    assert speeds.rows == [["memcpy", "0.84 (0.84)", "1.68 (1.68)"]]
    assert costs.rows == [["memcpy", "1.19", "0.60"]]
    assert speed_tables("Title", []) == []


@pytest.mark.parametrize("name", ["memcpy", "bare nixl", "shm", "nixl", "tcp"])
def test_a_burst_moves_every_page_with_several_in_flight(name):
    shape = Shape(page_bytes=16 << 10, page_count=96, pages=16)
    pair = Pair(METHODS[name], shape)
    try:
        pair.meet().warm()
        for seed in (0, 2):
            assert pair.burst(5, 2, seed).seconds > 0
        if pair.method.ours:
            assert pair.hand_over(7).pages == 16, "and single ones go on as before"
    finally:
        pair.close()


def test_load_stands_beside_its_peer(monkeypatch):
    monkeypatch.setattr(load, "PER_BURST", 3)
    records = load.measure_load(["memcpy", "shm"], [16 << 10], 1 << 18, bursts=2)
    assert [(one["method"], one["way"], len(one["seconds"])) for one in records] == [
        *(("memcpy", "alone", 8), ("memcpy", "load", 2)),
        *(("shm", "alone", 8), ("shm", "load", 2)),
    ]
    assert [one["bytes"] for one in records] == [1 << 18, 3 << 18] * 2
    (table,) = load.load_tables(records)
    assert [row[0] for row in table.rows] == ["memcpy", "shm, whole"]
    assert table.rows[0][4] is None and table.rows[1][4] is not None
    assert load.load_tables([]) == []


def test_methods_take_turns():
    records = measure("speed", ["memcpy", "shm"], SMALL, rounds=2)
    assert [len(one["seconds"]) for one in records] == [2, 2, 2]
