"""Both ends of many hand-overs, several of them in flight at once, and every byte of them verified.

A burst is so many hand-overs of the same size; as soon as one of them is released the next begins.
What a prefill engine would do (pages, block hashes, seals) is done before the clock runs. The
reader keeps all pages until the burst has ended, and verifies them then.
"""

import time

from ...kvtransfer.holder import Lease
from ...kvtransfer.incoming import Incoming
from ...kvtransfer.moves import Event
from ...protocol import blockhash
from ...protocol.messages import FirstTokens
from .child import Words, say
from .ends import MODEL, NUMERIC_CLASS, HolderEnd, ReaderEnd, prompt
from .pages import verify


class HolderBurst(HolderEnd):
    """Keeps `flight` hand-overs going until all were released."""

    _waiting: list[Words]  # of the burst, not begun; "pages" among what is known of each
    _handing: dict[int, list[int]]  # by request: its pages
    _began = 0.0  # 0: no burst runs

    def do(self, words: Words) -> Words | None:
        if words["do"] != "burst":
            return super().do(words)
        self._prepare(words)
        self.start_clock()
        self._began = time.monotonic()
        for _ in range(words["flight"]):
            self._next()
        return None

    def _prepare(self, words: Words) -> None:
        count, handovers = words["count"], words["handovers"]
        self.leave_free(count * handovers, words["seed"])
        root = blockhash.root(MODEL, NUMERIC_CLASS, "")
        self._waiting, self._handing = [], {}
        for number in range(words["number"], words["number"] + handovers):
            one = {**words, "number": number}
            tokens = prompt(one, self._reader, self.mailbox.me).token_ids
            pages = self.pool.take(("prompt", number), count)
            assert pages is not None
            self.pool.seal_blocks(pages, blockhash.extend(root, tokens, words["slots"]))
            self._waiting.append({**one, "pages": pages})

    def _next(self) -> None:
        if not self._waiting:
            return
        one = self._waiting.pop(0)
        prefill = prompt(one, self._reader, self.mailbox.me)
        lease = self.holder.open(prefill, 0, time.monotonic())
        self._handing[prefill.request] = one["pages"]
        self.holder.publish(lease, one["pages"], FirstTokens([0], [1], [""], [None]))

    def _ended(self) -> None:
        if not self._began:
            super()._ended()
            return
        ended: list[Lease] = [*self.holder.ended]
        self.holder.ended.clear()
        for lease in ended:
            if lease.ended_by is not Event.RELEASED:
                raise RuntimeError(f"the lease ended: {lease.ended_by}")
            self._next()
            del self._handing[lease.prefill.request]
            self.pool.release(("prompt", lease.prefill.request))
        if not self._handing:
            say({"seconds": time.monotonic() - self._began, "cpu": self.cpu()})
            self._began = 0.0


class ReaderBurst(ReaderEnd):
    """Takes all hand-overs of a burst, then looks at what came."""

    _expected = 0  # hand-overs of the burst that runs
    _came: list[Incoming]

    def do(self, words: Words) -> Words | None:
        if words["do"] != "take":
            return super().do(words)
        self._expected, self._came = words["handovers"], []
        self.leave_free(words["count"] * self._expected, words["seed"])
        self.start_clock()
        return {}

    def _complete(self, incoming: Incoming, now: float) -> None:
        if not self._expected:
            super()._complete(incoming, now)
            return
        self._came += [incoming, *self.reader.complete]
        self.reader.complete.clear()
        if len(self._came) < self._expected:
            return
        cpu, self._expected = self.cpu(), 0
        for one in self._came:
            verify(self.memory, one.pages, one.said.pages(0, one.total).tolist())
            self.pool.release(one.pool_holder)
        say({"cpu": cpu, "path": self.plane.path})
