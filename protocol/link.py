"""One connection to one endpoint. A Link lives as long as its TCP connection and never longer.

ZeroMQ would reconnect by itself and deliver what is still queued to whatever process answers at
the same endpoint by then. Here reconnecting is switched off: when the connection is gone the
Link is closed with all it holds, and a new Link carries only what is sent from then on.
"""

import logging
import struct
from enum import Enum

import zmq

from .clusterkey import ClusterKey

HIGH_WATER_MARK = 8192  # messages queued for one endpoint before it counts as lost
HEARTBEAT_MILLISECONDS = 1000
SILENCE_MILLISECONDS = 5000  # a peer host that answers no heartbeat for so long is gone
CONNECT_MILLISECONDS = 5000

_EVENT = struct.Struct("=hi")
_UP = zmq.EVENT_HANDSHAKE_SUCCEEDED
_REFUSED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_DOWN = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | zmq.EVENT_CLOSE_FAILED | _REFUSED

log = logging.getLogger("penstock.sockets")


class LinkState(Enum):
    """CONNECTING -> UP -> DOWN, or CONNECTING -> DOWN."""

    CONNECTING = "connecting"
    UP = "up"
    DOWN = "down"


class Link:
    """A DEALER that connects once, and the monitor that tells what became of it."""

    def __init__(self, context: zmq.Context, endpoint: str, key: ClusterKey | None) -> None:
        self.endpoint = endpoint
        self.state = LinkState.CONNECTING
        self.refused = False  # reached, but the two could not agree to talk
        self._socket = context.socket(zmq.DEALER)
        configure(self._socket)
        self._socket.reconnect_ivl = -1
        self._socket.connect_timeout = CONNECT_MILLISECONDS
        self._socket.ipv6 = "[" in endpoint
        if key is not None:
            self._socket.curve_serverkey = key.public.encode()
            self._socket.curve_publickey = key.public.encode()
            self._socket.curve_secretkey = key.secret.encode()
        self._monitor = self._socket.get_monitor_socket(_UP | _DOWN)
        self._monitor.linger = 0
        self.progress()  # a monitor signals its first event only if it was found empty before
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            log.warning("cannot connect to %r: %s", endpoint, error)
            self.state = LinkState.DOWN

    def fileno(self) -> int:
        """Readable when `progress` may have news."""
        return self._monitor.fileno()

    def progress(self) -> LinkState:
        """Take in what happened to the connection. Reads until the monitor is empty, because
        ZeroMQ signals a descriptor once and not again while something is left."""
        while True:
            try:
                event, _ = _EVENT.unpack(self._monitor.recv_multipart(zmq.NOBLOCK)[0])
            except zmq.Again:
                return self.state
            if event & _UP and self.state is LinkState.CONNECTING:
                self.state = LinkState.UP
            elif event & _DOWN:
                self.state = LinkState.DOWN
                self.refused |= bool(event & _REFUSED)

    def send(self, frames: list[bytes]) -> bool:
        """False when the queue is full. After the connection is gone, what is sent is lost."""
        *heads, body = frames
        try:
            for head in heads:
                self._socket.send(head, zmq.SNDMORE | zmq.NOBLOCK)
            self._socket.send(body, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def close(self, linger_milliseconds: int = 0) -> None:
        """Give up what is queued, or let it go out for so long."""
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(linger_milliseconds)


def configure(socket: zmq.Socket) -> None:
    """What both ends of a connection share: bounded queues, heartbeats, bounded handshakes."""
    socket.linger = 0
    socket.sndhwm = HIGH_WATER_MARK
    socket.rcvhwm = HIGH_WATER_MARK
    socket.heartbeat_ivl = HEARTBEAT_MILLISECONDS
    socket.heartbeat_timeout = SILENCE_MILLISECONDS
    socket.heartbeat_ttl = SILENCE_MILLISECONDS
    socket.handshake_ivl = CONNECT_MILLISECONDS
