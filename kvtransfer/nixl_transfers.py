"""One NIXL transfer from its posting to its end, and what ends it.

A transfer is released only when NIXL said DONE or reported the endpoint as lost. Any other error
proves nothing: the transfer is `stuck`, and what it reads into is never quiet.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .nixl_peers import Peer
from .targets import Indices


@dataclass(slots=True, eq=False)
class Transfer:
    peer: Peer
    handle: Any
    ended: bool = False
    failed: str = ""
    stuck: bool = False


class Transfers:
    """Posts and polls them."""

    def __init__(self, agent: Any, disconnected: type[Exception]) -> None:
        self._agent: Any = agent
        self._disconnected = disconnected
        self._post: Any = agent.transfer
        self._check: Any = agent.check_xfer_state
        self._stuck: list[Any] = []  # kept, because letting go of a handle releases it

    def start(
        self,
        peer: Peer,
        ours: Any,
        local: Indices,
        theirs: Any,
        remote: Indices,
        word: bytes = b"",
    ) -> Transfer:
        """Read descriptors `remote` of list `theirs` into descriptors `local` of list `ours`.

        Their owner is told `word` once they are read.
        """
        try:
            handle = self._agent.make_prepped_xfer("READ", ours, local, theirs, remote, word)
        except Exception as error:
            return Transfer(peer, None, True, f"NIXL refused the read: {error!r}")
        transfer = Transfer(peer, handle)
        peer.open_transfers += 1
        # Where posting fails, a part may have been posted, and NIXL keeps no hold on that part.
        self._step(transfer, self._post, "before")
        return transfer

    def poll(self, transfer: Transfer) -> bool:
        """True once it has ended, well or not."""
        if not transfer.ended:
            self._step(transfer, self._check, "while")
        return transfer.ended

    def _step(self, transfer: Transfer, step: Callable[[Any], str], when: str) -> None:
        try:
            if step(transfer.handle) != "DONE":
                return
        except self._disconnected:
            transfer.peer.lost = True
            transfer.failed = f"{transfer.peer.endpoint} was lost {when} reading"
        except Exception as error:
            transfer.failed = f"NIXL failed: {error!r}"
            transfer.stuck = True
        transfer.ended = True
        transfer.peer.open_transfers -= 1
        if transfer.stuck:
            self._stuck.append(transfer.handle)
        else:
            transfer.handle.release()

    def close(self) -> None:
        self._agent = self._post = self._check = None
        self._stuck.clear()
