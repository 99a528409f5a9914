"""G5: the planes between two network namespaces, as between two hosts but for the wire.

Made and removed here; needs root. Nothing of a pair shares memory, sockets or interfaces then, so
what moves is what would move over a network: UCX is held to TCP, and shm cannot be used.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..report import Cell, Table
from .pair import Shape
from .speed import Record, measure, shape_of

METHODS_ACROSS = (
    *("bare socket", "bare nixl-tcp", "bare nixl-tcp, untuned", "nixl-tcp", "tcp", "zmq"),
    "zmq-curve",
)


class NoNamespaces(Exception):
    """Namespaces cannot be made here; the text says why and what would work."""


@dataclass(frozen=True, slots=True)
class Namespaces:
    """Two of them, joined by a pair of virtual interfaces."""

    names: tuple[str, str]
    hosts: tuple[str, str]

    def across(self, shape: Shape) -> Shape:
        """The same operation with its ends in both."""
        holder, reader = (("ip", "netns", "exec", name) for name in self.names)
        return Shape(
            shape.page_bytes,
            shape.page_count,
            shape.pages,
            hosts=self.hosts,
            inside=(holder, reader),
        )


def _ip(*words: str) -> None:
    try:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise NoNamespaces("there is no `ip` command; install iproute2") from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip() or f"ip {' '.join(words)} failed"
        raise NoNamespaces(f"{reason}; it needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN)") from None


@contextmanager
def namespaces() -> Iterator[Namespaces]:
    """Raises NoNamespaces."""
    mark = os.getpid()
    names = (f"penstock-{mark}-a", f"penstock-{mark}-b")
    ends = (f"pk{mark}a", f"pk{mark}b")
    hosts = ("10.213.7.1", "10.213.7.2")
    made: list[str] = []
    try:
        for name in names:
            _ip("netns", "add", name)
            made.append(name)
        peer = ("peer", "name", ends[1], "netns", names[1])
        _ip("link", "add", ends[0], "netns", names[0], "type", "veth", *peer)
        for name, end, host in zip(names, ends, hosts, strict=True):
            _ip("-n", name, "address", "add", f"{host}/24", "dev", end)
            _ip("-n", name, "link", "set", end, "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield Namespaces(names, hosts)
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def measure_across(
    sizes: list[int], operation: int, rounds: int, methods: list[str]
) -> list[Record]:
    records: list[Record] = []
    try:
        with namespaces() as both:
            for size in sizes:
                shape = both.across(shape_of(size, operation))
                records += measure("across", methods, shape, rounds)
    except NoNamespaces as error:
        records.append({"part": "across", "method": "not run", "reason": str(error)})
    return records


def refusals(records: list[Record]) -> list[Table]:
    """Why this part was not run, where it was not."""
    rows: list[list[Cell]] = [
        [one["reason"]] for one in records if one["part"] == "across" and "reason" in one
    ]
    return [Table("Between two network namespaces", ["not run"], rows)] if rows else []
