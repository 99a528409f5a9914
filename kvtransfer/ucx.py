"""NIXL's library as we want it loaded: quiet, tuned, without a thread, and with its lanes known.

UCX reads its environment once, when its library is loaded, so this is the only place that imports
nixl. What the user has set is never replaced. UCX tells which transports it chose in its log and
nowhere else; the log therefore goes to a memory file which is read for `lanes` and forwarded.
"""

import ctypes
import functools
import logging
import os
import re
from types import ModuleType
from typing import Any

from .plane import PlaneError

LOGGER = logging.getLogger("penstock.ucx")

# One lane line: "... UCX  INFO    <worker> intra-node cfg#1 rma_am(tcp/lo)  am(cma/memory) ...".
LANE = re.compile(r" (?P<agent>\S+) (?P<where>intra|inter)-node cfg#\d+ (?P<lanes>.*)$")
WHERE = {"intra": "same host", "inter": "other hosts"}
TRANSPORT = re.compile(r"([a-z_0-9]+)/")
SEVERE = re.compile(r"\bUCX\s+(WARN|ERROR|FATAL)\s+(.*)$")

DEFAULTS = {
    # INFO would be written to stdout, where the launcher's own words belong.
    "NIXL_LOG_LEVEL": "WARN",
    # UCX's 8 KB segments make a READ over TCP 2 to 8 times slower.
    "UCX_TCP_TX_SEG_SIZE": "256k",
    "UCX_TCP_RX_SEG_SIZE": "256k",
    "UCX_TCP_SNDBUF": "4m",
    "UCX_TCP_RCVBUF": "4m",
    # Without these a cut link was not noticed in 150 s; with them in 2 to 3 s. The user timeout
    # also ends a connection whose reader stood still that long with a full window, so it is kept
    # above any pause of a living process.
    "UCX_TCP_USER_TIMEOUT": "5s",
    "UCX_KEEPALIVE_INTERVAL": "1s",
    "UCX_TCP_KEEPIDLE": "1s",
    "UCX_TCP_KEEPINTVL": "1s",
    "UCX_TCP_KEEPCNT": "2",
}


class UcxLog:
    """UCX's log in a memory file. Without one (the user logs elsewhere) it knows no lanes."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._offset = 0
        self._lanes: dict[tuple[str, str], dict[str, None]] = {}
        self._flush = _flush_of_loaded_ucx() if file >= 0 else None

    def lanes(self, agent: str) -> str:
        """Transports of an agent's connections so far, e.g. "same host: tcp cma"; "" before any."""
        self.drain()
        return "; ".join(
            f"{where}: {' '.join(lanes)}"
            for (logged, where), lanes in self._lanes.items()
            if agent.startswith(logged)  # UCX cuts long names
        )

    def drain(self) -> None:
        if self._flush is None:
            return
        self._flush()
        text = os.pread(self._file, 1 << 20, self._offset)
        self._offset += len(text)
        for line in text.decode(errors="replace").splitlines():
            if match := LANE.search(line):
                known = self._lanes.setdefault((match["agent"], WHERE[match["where"]]), {})
                known.update(dict.fromkeys(TRANSPORT.findall(match["lanes"])))
            elif match := SEVERE.search(line):
                LOGGER.warning("%s", match[2])


class Nixl:
    """The loaded library: its module, its version, UCX's log."""

    def __init__(self, api: ModuleType, bindings: ModuleType, version: str, file: int) -> None:
        self.version = version
        self.disconnected: type[Exception] = bindings.nixlRemoteDisconnectError
        self._api = api
        self._log_file = file
        self._log: UcxLog | None = None

    def agent(self, name: str) -> Any:
        """An agent with UCX up. No progress thread: an idle one would burn a whole core."""
        config = self._api.nixl_agent_config(enable_prog_thread=False, backends=[])
        try:
            agent = self._api.nixl_agent(name, config)
            agent.create_backend("UCX", {})
        except Exception as error:
            raise PlaneError(f"NIXL's UCX backend does not start: {error!r}") from error
        return agent

    @property
    def log(self) -> UcxLog:
        """Only once an agent is up: UCX itself is loaded with the first."""
        if self._log is None:
            self._log = UcxLog(self._log_file)
            if self._log_file >= 0:
                # Our children must not inherit a path that means nothing to them.
                del os.environ["UCX_LOG_LEVEL"], os.environ["UCX_LOG_FILE"]
        return self._log


@functools.cache
def load() -> Nixl:
    """Import nixl, once per process. Raises PlaneError with the reason."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    file = -1
    if "UCX_LOG_LEVEL" not in os.environ and "UCX_LOG_FILE" not in os.environ:
        file = os.memfd_create("penstock-ucx-log")
        os.environ["UCX_LOG_LEVEL"] = "info"
        os.environ["UCX_LOG_FILE"] = f"/proc/{os.getpid()}/fd/{file}"
    try:
        from importlib.metadata import version

        from nixl import _api, _bindings  # pyright: ignore[reportAttributeAccessIssue]
    except Exception as error:  # a wheel for another CUDA raises more than ImportError
        if file >= 0:
            os.close(file)
            del os.environ["UCX_LOG_LEVEL"], os.environ["UCX_LOG_FILE"]
        raise PlaneError(f"nixl cannot be imported: {error!r}") from error
    return Nixl(_api, _bindings, version("nixl"), file)


def _flush_of_loaded_ucx() -> Any:
    """UCX buffers its log; its own flush is the only way to see a line at once."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            path = line.rstrip().rpartition(" ")[2]
            if "/libucs-" in path or "/libucs.so" in path:
                return ctypes.CDLL(path).ucs_log_flush
    return None
