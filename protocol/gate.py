"""Who may connect to an inbox: only holders of the cluster key.

ZeroMQ asks an in-process socket (RFC 27, ZAP) about every connection before its first message
passes. The Mailbox's own loop answers, so no thread and no second owner is needed.
"""

import logging

import zmq
from zmq.utils import z85

from .clusterkey import ClusterKey

log = logging.getLogger("penstock.sockets")


class Gate:
    """Answers ZeroMQ's questions; counts those it turned away."""

    def __init__(self, context: zmq.Context, key: ClusterKey) -> None:
        self.strangers = 0
        self._admitted = z85.decode(key.public)
        self._socket = context.socket(zmq.REP)
        self._socket.bind("inproc://zeromq.zap.01")

    def fileno(self) -> int:
        """Readable when `progress` has somebody to judge."""
        return self._socket.fileno()

    def progress(self) -> None:
        while True:
            try:
                question = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            version, request, _, address, _, mechanism, *credentials = question
            welcome = mechanism == b"CURVE" and credentials == [self._admitted]
            if not welcome:
                self.strangers += 1
                log.warning("refusing %s: it holds another key", address.decode(errors="replace"))
            status = [b"200", b"OK"] if welcome else [b"400", b"another cluster key"]
            self._socket.send_multipart([version, request, *status, b"", b""])

    def close(self) -> None:
        self._socket.close(0)
