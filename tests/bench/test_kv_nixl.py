"""What NIXL agents cost: that the figures are taken, and that a missed bound is told."""

import importlib.util

import pytest

from penstock.bench.planes import nixl
from penstock.bench.planes.nixl import NONE, Cost, table


def test_a_missed_bound_is_told() -> None:
    told = table(
        [Cost("near", 2.0, 3.0, "ms"), Cost("far", 4.0, 3.0, "ms"), Cost("a", 1, NONE, "")]
    )
    near, far, compared = told.splitlines()
    assert near.endswith("at most 3  reached") and far.endswith("at most 3  MISSED")
    assert "most" not in compared


@pytest.mark.skipif(importlib.util.find_spec("nixl") is None, reason="nixl is not installed")
def test_every_cost_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PEERS": 3,
        "PAGES": 1000,
        "STARTS": 1,
        "PREPARED": 3,
        "SLOTFULS": 3,
    }.items():
        monkeypatch.setattr(nixl, name, value)
    costs = {cost.name: cost for cost in nixl.measure()}
    assert len(costs) == 10 and all(cost.figure >= 0 for cost in costs.values())
    assert costs["metadata of a worker"].reached
    assert 0 < costs["  of which adding them"].figure < costs["3 peers connected, CPU"].figure
