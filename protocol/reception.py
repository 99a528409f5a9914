"""Where a process receives: one ROUTER, its frames as messages, and what becomes of garbage.

Whoever sends what cannot be read speaks another revision, or is not one of us. It is counted, said
once in the log, and its connection is closed; what it sent behind the garbage is dropped with it.
A peer that connects again is heard again.

ZeroMQ cannot close one connection of a ROUTER, but it tells each frame's descriptor. A shut-down
descriptor is an end of stream to ZeroMQ's own thread, which then closes it in its usual way.
"""

import logging
import os
import socket
from dataclasses import dataclass

import zmq

from . import codec
from .addresses import format_endpoint, numeric_address
from .clusterkey import ClusterKey
from .link import configure
from .messages import Peer
from .seams import Received
from .seen import Seen

MAX_DRAIN = 2048  # messages per `drain`, so that a flood cannot hold the loop
MAX_KNOWN_SENDERS = 4096
OWN_ROUTING = b"\x00"  # how routing ids begin that ZeroMQ drew: one for each connection

log = logging.getLogger("penstock.sockets")


@dataclass(slots=True)
class Counters:
    """What went through a mailbox since its start."""

    sent: int = 0
    received: int = 0
    garbage: int = 0  # messages dropped because they could not be read
    other_revisions: int = 0  # of them: because their sender speaks another revision
    closed: int = 0  # connections closed because of garbage
    overflows: int = 0  # links given up because their queue was full
    discarded: int = 0  # messages given up before they were handed to a connection


class Reception:
    """The receiving socket of a mailbox. Belongs to the mailbox's thread."""

    def __init__(
        self,
        context: zmq.Context,
        host: str,
        port: int,
        key: ClusterKey | None,
        counters: Counters,
    ) -> None:
        """Receive at host:port (0: any free port). Raises zmq.ZMQError or OSError."""
        self.more = False  # `drain` left something that will not be signalled again
        self._counters = counters
        self._senders: dict[bytes, Peer] = {}  # by header
        self._said = Seen(MAX_KNOWN_SENDERS)
        self._closed: dict[bytes, None] = {}  # routing ids of closed connections
        self._socket = _open(context, host, port, key)
        self.port = int(self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])

    def fileno(self) -> int:
        """Readable when `drain` has something to say."""
        return self._socket.fileno()  # type: ignore[return-value]

    def drain(self) -> list[Received]:
        """Read until the socket is empty: its descriptor is signalled once, and not again while
        something is left."""
        received: list[Received] = []
        self.more = False
        for _ in range(MAX_DRAIN):
            try:
                routing = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return received
            header = self._socket.recv(copy=False)
            frames = self._socket.recv_multipart() if header.more else []
            if routing in self._closed:
                self._counters.garbage += 1
                continue
            sender = None
            try:
                sender = self._sender(header)
                if len(frames) != 1:
                    raise codec.CodecError(f"{len(frames) + 1} frames instead of 2")
                received.append(Received(sender, codec.decode(frames[0])))
                self._counters.received += 1
            except codec.CodecError as error:
                self._turn_away(routing, header, sender, error)
        self.more = True
        return received

    def close(self) -> None:
        self._socket.close(0)

    def _sender(self, header: zmq.Frame) -> Peer:
        if len(header) > codec.MAX_HEADER_BYTES:
            raise codec.CodecError(f"header of {len(header)} bytes")
        head = header.bytes
        peer = self._senders.get(head)
        if peer is None:
            peer = codec.decode_header(head)
            if len(self._senders) >= MAX_KNOWN_SENDERS:
                self._senders.clear()
            self._senders[head] = peer
        return peer

    def _turn_away(
        self, routing: bytes, header: zmq.Frame, sender: Peer | None, error: codec.CodecError
    ) -> None:
        self._counters.garbage += 1
        self._counters.other_revisions += isinstance(error, codec.WrongRevision)
        address, descriptor = _origin(header)
        who = f"{sender.name} at {sender.endpoint}" if sender is not None else address
        if self._said.first((who, type(error))):
            log.warning("closing the connection of %s: %s", who, error)
        if _hang_up(descriptor, address, self.port):
            self._counters.closed += 1
            # A descriptor's number is used again: it may be another peer's when the next garbage
            # of this connection is read. A routing id that a peer chose itself may come again.
            if routing.startswith(OWN_ROUTING):
                while len(self._closed) >= MAX_KNOWN_SENDERS:
                    del self._closed[next(iter(self._closed))]
                self._closed[routing] = None


def _open(context: zmq.Context, host: str, port: int, key: ClusterKey | None) -> zmq.Socket:
    opened = context.socket(zmq.ROUTER)
    configure(opened)
    opened.maxmsgsize = codec.MAX_BODY_BYTES
    opened.ipv6 = ":" in host
    if key is not None:
        opened.curve_server = True
        opened.curve_publickey = key.public.encode()
        opened.curve_secretkey = key.secret.encode()
        opened.zap_domain = b"penstock"
    try:
        opened.bind(format_endpoint(numeric_address(host), port))
    except BaseException:
        opened.close(0)
        raise
    return opened


def _origin(frame: zmq.Frame) -> tuple[str, int]:
    """Address and descriptor a frame came from; who speaks a ZeroMQ older than 4 leaves neither."""
    try:
        return str(frame.get("Peer-Address")), int(frame.get(zmq.SRCFD))
    except zmq.ZMQError:
        return "a stranger that speaks an old ZeroMQ", -1


def _hang_up(descriptor: int, address: str, port: int) -> bool:
    """End the connection behind a descriptor, if it still is one of `address` to our `port`.

    Asked and ended through a copy of the descriptor, which nobody can give another meaning to.
    """
    try:
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            if (connection.getpeername()[0], connection.getsockname()[1]) != (address, port):
                return False
            connection.shutdown(socket.SHUT_RDWR)
            return True
    except OSError:
        return False  # it has ended by itself
