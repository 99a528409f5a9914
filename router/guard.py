"""One request's fault costs the others nothing: whatever its handling raises is told and counted.

Pure but for the log.
"""

import logging
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

log = logging.getLogger("penstock.router")


class Guard:
    """Runs steps that must not end the loop they are part of."""

    def __init__(self) -> None:
        self.faults = 0

    def run(self, step: Callable[[], Result], what: str, about: object) -> Result | None:
        """Its result; None where it raised, which is logged with `what` and what it is `about`."""
        try:
            return step()
        except Exception:
            self.faults += 1
            log.exception("%s: %r", what, about)
            return None
