"""An agent's registered memory and prepared descriptor lists, and the agents it knows."""

from typing import Any

import numpy

from .plane import PlaneError

LOCAL = "NIXL_INIT_AGENT"  # NIXL's word for our own side of a transfer
ONE = numpy.zeros(1, dtype=numpy.int32)  # the only descriptor of a list
Row = tuple[int, int, int, int, int]  # address, bytes, device, stride in bytes, how many


def memory_kind(device: str) -> tuple[str, int]:
    """NIXL's kind of memory and the device's number. Raises PlaneError."""
    if device == "cpu":
        return "DRAM", 0
    if device.startswith("cuda:") and device[5:].isdecimal():
        return "VRAM", int(device[5:])
    raise PlaneError(f"{device!r} is no memory NIXL knows: cpu or cuda:<number>")


def strided(address: int, size: int, count: int, device: int = 0) -> Row:
    """`count` descriptors of `size` bytes, one after the other: 2 us for any number of them."""
    return (address, size, device, size, count)


class Lists:
    """What is registered stays so until the end: UCX would use it after its end otherwise."""

    def __init__(self, agent: Any) -> None:
        self._agent: Any = agent
        self._registered: list[Any] = []

    def register(self, address: int, length: int, kind: str = "DRAM", device: int = 0) -> None:
        region = numpy.array([[address, length, device]], dtype=numpy.uint64)
        self._registered.append(self._agent.register_memory(region, kind))

    def prepare(self, agent: str, rows: list[Row], kind: str = "DRAM") -> Any:
        return self._agent.prep_xfer_dlist(agent, numpy.array(rows, dtype=numpy.uint64), kind)

    def deregister(self) -> None:
        for registered in self._registered:
            self._agent.deregister_memory(registered)

    def close(self) -> None:
        self._registered.clear()
        self._agent = None


class Agents:
    """Remote agents that are loaded, and for whom: an agent goes with its last user.

    The same process may be read by us and read from us; it is one agent for both.
    """

    def __init__(self, agent: Any) -> None:
        self._agent: Any = agent
        self._names: dict[bytes, str] = {}  # by metadata
        self._users: dict[str, set[str]] = {}

    def hold(self, metadata: bytes, user: str) -> str:
        """Load the agent if need be; its name. Raises what NIXL raises."""
        name = self._names.get(metadata)
        if name is None:
            answer = self._agent.add_remote_agent(metadata)
            name = answer.decode() if isinstance(answer, bytes) else str(answer)
            self._names[metadata] = name
        self._users.setdefault(name, set()).add(user)
        return name

    def drop(self, name: str, user: str) -> None:
        users = self._users.get(name)
        if users is not None:
            users.discard(user)
            if not users:
                self.remove(name)

    def remove(self, name: str) -> None:
        """For every user: its connection is broken, and only a new one will do."""
        if self._users.pop(name, None) is not None:
            self._names = {key: other for key, other in self._names.items() if other != name}
            self._agent.remove_remote_agent(name)

    def close(self) -> None:
        self._users.clear()
        self._agent = None
