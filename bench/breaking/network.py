"""Two network namespaces joined by one cable that can be cut. Needs root and the `ip` command.

Both have a loopback of their own, which UCX needs for a connection to itself; no packet gets from
one namespace to the other but through the cable.
"""

import os
import secrets
import shutil
import subprocess

HOLDER_ADDRESS, READER_ADDRESS = "10.89.7.1", "10.89.7.2"


class Cable:
    """Namespaces for a holder and a reader. Commands run in one by `inside`."""

    def __init__(self, megabits_per_second: int = 0) -> None:
        """Raises OSError with the reason where namespaces cannot be made."""
        mark = secrets.token_hex(3)
        self.holder, self.reader = f"pen-h-{mark}", f"pen-r-{mark}"
        self._ends = {self.holder: f"h{mark}", self.reader: f"r{mark}"}
        if shutil.which("ip") is None:
            raise OSError("there is no `ip` command")
        if os.geteuid() != 0:
            raise OSError("network namespaces need root")
        try:
            self._build(megabits_per_second)
        except OSError:
            self.close()
            raise

    def _build(self, megabits_per_second: int) -> None:
        for namespace in self._ends:
            _ip("netns", "add", namespace)
        ours, theirs = self._ends[self.holder], self._ends[self.reader]
        _ip("link", "add", ours, "netns", self.holder, "type", "veth", "peer", "name", theirs,
            "netns", self.reader)  # fmt: skip
        for namespace, address in ((self.holder, HOLDER_ADDRESS), (self.reader, READER_ADDRESS)):
            end = self._ends[namespace]
            _ip("-n", namespace, "address", "add", f"{address}/24", "dev", end)
            _ip("-n", namespace, "link", "set", end, "up")
            _ip("-n", namespace, "link", "set", "lo", "up")
        if megabits_per_second:
            rate = f"{megabits_per_second}mbit"
            shape = ["root", "tbf", "rate", rate, "burst", "256k", "latency", "100ms"]
            _run("tc", "-n", self.holder, "qdisc", "add", "dev", ours, *shape)

    def inside(self, namespace: str) -> list[str]:
        """What to put before a command line."""
        return ["ip", "netns", "exec", namespace]

    def cut(self) -> None:
        _ip("-n", self.holder, "link", "set", self._ends[self.holder], "down")

    def mend(self) -> None:
        _ip("-n", self.holder, "link", "set", self._ends[self.holder], "up")

    def close(self) -> None:
        for namespace in self._ends:
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True)


def why_not() -> str:
    """Why no cable can be laid on this machine; "" where it can."""
    try:
        Cable().close()
    except OSError as error:
        return str(error)
    return ""


def has_loss() -> bool:
    """Can the kernel lose, delay and double packets on purpose (netem)?"""
    cable = Cable()
    try:
        end = cable._ends[cable.holder]
        _run("tc", "-n", cable.holder, "qdisc", "add", "dev", end, "root", "netem", "loss", "1%")
    except OSError:
        return False
    finally:
        cable.close()
    return True


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    try:
        ran = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise OSError(f"{command[0]} cannot be run: {error.strerror}") from None
    if ran.returncode:
        raise OSError(f"`{' '.join(command)}`: {ran.stderr.strip() or ran.returncode}")
