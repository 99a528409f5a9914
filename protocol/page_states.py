"""What may become of a page, by name and as one byte each. Pure; drawn at the head of `pages`."""

from enum import Enum


class PageState(Enum):
    FREE = "free"
    OPEN = "open"
    SEALED = "sealed"
    CACHED = "cached"
    QUARANTINED = "quarantined"


MOVES: dict[PageState, frozenset[PageState]] = {
    PageState.FREE: frozenset({PageState.OPEN}),
    PageState.OPEN: frozenset({PageState.SEALED, PageState.FREE, PageState.QUARANTINED}),
    PageState.SEALED: frozenset({PageState.CACHED, PageState.FREE}),
    PageState.CACHED: frozenset({PageState.SEALED, PageState.FREE}),
    PageState.QUARANTINED: frozenset({PageState.FREE}),
}

# As numbers, one byte per page; FREE is 0, so that the lowest free page is found as a byte is.
STATES = tuple(PageState)
FREE, OPEN, SEALED, CACHED, QUARANTINED = range(len(STATES))
ALLOWED = [[to in MOVES[was] for was in STATES] for to in STATES]  # [to][was]
