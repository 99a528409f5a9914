"""What a request without a worker may wait for."""

from penstock.router.fleet import Fleet
from penstock.router.flow_numbers import FlowCounters, FlowSettings
from penstock.router.places import Places


def test_a_router_that_just_started_waits_for_its_workers():
    """They were probably there before it: requests of the first second are not refused."""
    places = Places(Fleet(5.0, started=100.0), FlowSettings(failover_seconds=15.0), FlowCounters())
    assert places.just_lost(100.5)
    assert not places.just_lost(115.5)
    never = Places(Fleet(5.0), FlowSettings(failover_seconds=15.0), FlowCounters())
    assert not never.just_lost(0.5)
