"""A router asks for requests it heard nothing of; the worker names those it does not have. Pure."""

from collections.abc import Callable

from ..protocol.messages import Inquire, Unknown


def absent(inquiry: Inquire, here: Callable[[int, int, int], bool]) -> Unknown | None:
    """`here(request, attempt, choice)`. None where everything asked for is here."""
    triples = zip(inquiry.requests, inquiry.attempts, inquiry.choices, strict=False)
    missing = [one for one in triples if not here(*one)]
    if not missing:
        return None
    requests, attempts, choices = zip(*missing, strict=True)
    return Unknown(list(requests), list(attempts), list(choices))
