"""Where prompts are tokenised: short ones at once, long ones in threads, so many and no more.

The tokenizers library releases the interpreter while it works, so a thread keeps the loop free.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import TypeVar

from .http_exchange import JSON, Exchange
from .metrics import Counters
from .openai_error import ApiError
from .openai_prompt import SHORT_PROMPT

Result = TypeVar("Result")

THREADS = 2
# Characters of prompts in the threads and before them; more is refused until some are done.
MOST_CHARACTERS = 64 << 20

log = logging.getLogger(__name__)


def refuse(exchange: Exchange, error: ApiError) -> None:
    exchange.respond(error.status, error.body(), JSON + error.headers())


class Tokenising:
    """Runs `work`, then `then` with its result on the loop, unless the client has left."""

    def __init__(self, counters: Counters, short: int = SHORT_PROMPT):
        self._counters = counters
        self._short = short
        self._threads = ThreadPoolExecutor(THREADS, "tokenise")
        self._characters = 0

    def run(
        self,
        exchange: Exchange,
        size: int,
        work: Callable[[], Result],
        then: Callable[[Result], None],
    ) -> None:
        """ApiErrors of short work are raised; those of long work answered."""
        if size <= self._short:
            then(self._timed(work))
            return
        if self._characters and self._characters + size > MOST_CHARACTERS:
            sentence = "too many long prompts are being tokenised"
            raise ApiError(sentence, status=503, code="overloaded", retry_after=1)
        self._characters += size
        self._counters.tokenising += 1
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._threads, self._timed, work)
        exchange.on_disconnect(future.cancel)
        future.add_done_callback(lambda done: self._done(exchange, size, done, then))

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _timed(self, work: Callable[[], Result]) -> Result:
        begun = monotonic()
        result = work()
        self._counters.tokenise.observe(monotonic() - begun)
        return result

    def _done(
        self,
        exchange: Exchange,
        size: int,
        future: "asyncio.Future[Result]",
        then: Callable[[Result], None],
    ) -> None:
        self._characters -= size
        self._counters.tokenising -= 1
        if future.cancelled():
            return
        try:
            then(future.result())
        except ApiError as error:
            refuse(exchange, error)
        except Exception:
            log.exception("a prompt could not be taken")
            refuse(exchange, ApiError("internal error", status=500))
