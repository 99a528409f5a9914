"""Endpoints, tcp://host:port, and which of them can be reached from where."""

import ipaddress
import socket


class AddressError(Exception):
    """This is no endpoint or no host; the text says what one looks like."""


def parse_endpoint(endpoint: str) -> tuple[str, int]:
    """Host and port of tcp://host:port. Raises AddressError."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    if not (endpoint.startswith("tcp://") and host and port.isdecimal() and int(port) < 65536):
        raise AddressError(f"{endpoint!r} is no endpoint; one looks like tcp://127.0.0.1:5557")
    return host.strip("[]"), int(port)


def format_endpoint(host: str, port: int) -> str:
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether this address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(numeric_address(host)).is_loopback
    except (OSError, ValueError):
        return False


def is_wildcard(host: str) -> bool:
    """Whether this means every address of the machine."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def reachable_host(toward: str) -> str:
    """The address of this machine as the host of endpoint `toward` sees it."""
    host, port = parse_endpoint(toward)
    family = socket.AF_INET6 if ":" in numeric_address(host) else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port or 9))  # sends nothing: the kernel only picks a route
        return probe.getsockname()[0]


def numeric_address(host: str) -> str:
    """A numeric address for a name; a numeric one stays as it is."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])


def advertised_host(host: str, advertise: str, toward: str) -> str:
    """What peers are told: `advertise` where given, `host` where it names one address, and where
    it means all of them, the one that endpoint `toward` would see."""
    if advertise:
        return advertise
    if is_wildcard(host):
        return reachable_host(toward)
    return host
