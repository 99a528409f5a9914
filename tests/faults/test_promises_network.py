"""F3 and F8: a cable that is cut, and control words that are lost, doubled, delayed, reordered."""

import pytest

from penstock.bench.breaking.cut import cut_rounds
from penstock.bench.breaking.network import why_not
from penstock.bench.breaking.proxy import Weather
from penstock.bench.breaking.reader import COMPLETE
from penstock.bench.breaking.weather import STORM, storm

BLOCKS = 600  # 7 MB, of which a part has come when the cable is cut


def test_f3_a_cut_cable_is_noticed_by_our_own_deadline_and_mended_without_a_restart(remote_plane):
    if reason := why_not():
        pytest.skip(f"no cable can be laid here: {reason}")
    (seen,) = cut_rounds(remote_plane, BLOCKS, rounds=1, down_seconds=0.2)
    assert seen["word"] in ("TIMED_OUT", "READ_FAILED", "PEER_LOST"), seen
    assert seen["word"] != "TIMED_OUT" or seen["late"] >= 0, seen
    assert seen["hit"] == 0 and seen["wrong"] == 0, seen


def test_f8_every_handover_ends_once_whatever_words_are_lost(nursery, plane):
    seen = storm(nursery, plane, handovers=48, seed=11, weather=STORM)
    assert (seen.twice, seen.wrong, seen.hung) == (0, 0, 0), seen
    assert seen.left == {"held": 0, "leases": 0, "quarantined": 0}
    assert sum(seen.ended.values()) == 48
    assert seen.ended[COMPLETE] > 24, seen
    assert all(seen.words[kind] > 0 for kind in ("lost", "doubled", "delayed")), seen


def test_f8_the_proxy_itself_loses_nothing(nursery):
    seen = storm(nursery, "zmq", handovers=32, seed=1, weather=Weather())
    assert seen.ended == {COMPLETE: 32} and not seen.wrong and not seen.twice


def test_f8_doubled_and_reordered_words_alone_cost_no_handover(nursery):
    weather = Weather(doubled=0.5, delayed=0.5, longest_delay=0.05)
    seen = storm(nursery, "shm", handovers=32, seed=5, weather=weather)
    assert seen.hung == seen.twice == seen.wrong == 0
    assert seen.ended[COMPLETE] + seen.ended["UNHEARD"] == 32, seen
