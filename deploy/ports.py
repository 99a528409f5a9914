"""Ports, looked at before anything slow begins."""

import errno
import socket

from ..protocol.addresses import format_endpoint, numeric_address, parse_endpoint
from ..protocol.config import Config


class PortError(Exception):
    """Nothing can listen there; the text says why and how to choose another place."""


def check_ports(config: Config) -> None:
    """Raises PortError for the first address of this cluster that is taken."""
    router = config.router
    _check(router.host, router.port, "--port or [router] port")
    host, port = parse_endpoint(router.control)
    _check(router.control_bind or host, port, "[router] control")
    for role, worker in config.workers.values():
        _check(worker.host, worker.port, f"[[{role}]] {worker.name}: port")


def free_control_endpoint() -> str:
    """A loopback endpoint that nobody listens at. It is free now; a restarted router needs the
    same one again, so it cannot be left to the router to choose."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return format_endpoint("127.0.0.1", probe.getsockname()[1])


def _check(host: str, port: int, setting: str) -> None:
    try:
        address = numeric_address(host)
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortError(
                f"port {port} on {host} is in use; choose another with {setting}"
            ) from None
        raise PortError(
            f"nothing can listen at {host} port {port} ({error.strerror}); change {setting}"
        ) from None
