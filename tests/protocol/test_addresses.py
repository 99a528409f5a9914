"""Endpoints, and what can be reached from where."""

import pytest

from penstock.protocol.addresses import (
    AddressError,
    advertised_host,
    format_endpoint,
    is_loopback,
    is_wildcard,
    parse_endpoint,
    reachable_host,
)


def test_endpoints() -> None:
    assert parse_endpoint("tcp://[::1]:5") == ("::1", 5)
    assert format_endpoint("::1", 5) == "tcp://[::1]:5"
    assert parse_endpoint(format_endpoint("host.example", 65535)) == ("host.example", 65535)


@pytest.mark.parametrize(
    "wrong", ["", "tcp://", "tcp://:5", "tcp://a", "http://a:5", "tcp://a:x", "tcp://a:70000"]
)
def test_what_is_no_endpoint(wrong: str) -> None:
    with pytest.raises(AddressError, match="one looks like tcp://"):
        parse_endpoint(wrong)


@pytest.mark.parametrize(
    ("host", "loopback", "wildcard"),
    [
        ("127.0.0.1", True, False),
        ("127.9.9.9", True, False),
        ("localhost", True, False),
        ("::1", True, False),
        ("0.0.0.0", False, True),
        ("::", False, True),
        ("192.0.2.1", False, False),
    ],
)
def test_who_can_reach_a_host(host: str, loopback: bool, wildcard: bool) -> None:
    assert (is_loopback(host), is_wildcard(host)) == (loopback, wildcard)


def test_what_peers_are_told() -> None:
    assert reachable_host("tcp://127.0.0.1:5000") == "127.0.0.1"
    assert advertised_host("127.0.0.1", "", "tcp://x:1") == "127.0.0.1"
    assert advertised_host("0.0.0.0", "here", "tcp://x:1") == "here"
    assert advertised_host("0.0.0.0", "", "tcp://127.0.0.1:1") == "127.0.0.1"
