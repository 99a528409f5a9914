"""What one exchange of a soak was worth: right, excused by what was broken, or a violation. Pure.

right        the expected answer, to the last token
refused      a clear sentence instead of an answer, while a role (or the router) was away
broken off   the same after the first token: an error event in the stream
cut          the connection failed while the router was away; it is asked again
left         the client went away; what it had seen was right
WRONG  HUNG  LOST  UNEXCUSED    violations
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from .answers import Answer, contradiction, difference, of_stream, of_whole
from .client import Reply
from .requests import Asked

VIOLATIONS = ("WRONG", "HUNG", "LOST", "UNEXCUSED")
UNAVAILABLE = (500, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`outcome` as above. `problem` and `got` say what was found, where it was not right."""

    outcome: str
    problem: str = ""
    got: Any = None

    @property
    def violation(self) -> bool:
        return self.outcome in VIOLATIONS


@dataclass(frozen=True, slots=True)
class Excuses:
    """What was broken while this exchange went on."""

    role_away: bool = False
    router_away: bool = False


def judge(asked: Asked, expected: Answer, reply: Reply, excuses: Excuses) -> Verdict:
    """One exchange."""
    if reply.how == "hung":
        return Verdict("HUNG", f"no end in {reply.seconds:.0f} s", _shown(reply))
    if reply.how == "complete" and reply.status != 200:
        return _refused(reply, excuses)
    if asked.stream and reply.status == 200:
        return _streamed(expected, reply, excuses)
    if reply.how == "complete":
        got = of_whole(reply.body)
        problem = difference(expected, got)
        return Verdict("WRONG", problem, got) if problem else Verdict("right")
    return _cut(reply, excuses)


def _refused(reply: Reply, excuses: Excuses) -> Verdict:
    try:
        sentence = str(msgspec.json.decode(reply.body)["error"]["message"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        return Verdict("LOST", f"HTTP {reply.status} without a sentence", _shown(reply))
    told = f"HTTP {reply.status}: {sentence}"
    if reply.status in UNAVAILABLE and (excuses.role_away or excuses.router_away):
        return Verdict("refused", told)
    return Verdict("UNEXCUSED", told)


def _streamed(expected: Answer, reply: Reply, excuses: Excuses) -> Verdict:
    streamed = of_stream(reply.body)
    if streamed.done and reply.how != "left":
        problem = difference(expected, streamed.answer)
        return Verdict("WRONG", problem, streamed.answer) if problem else Verdict("right")
    problem = contradiction(expected, streamed.answer)
    if problem:
        return Verdict("WRONG", f"{problem} (not finished)", streamed.answer)
    if streamed.error:
        excused = excuses.role_away or excuses.router_away
        return Verdict("broken off" if excused else "UNEXCUSED", streamed.error, streamed.answer)
    if reply.how == "complete":
        return Verdict(
            "LOST", "the stream ended without [DONE] and without an error", _shown(reply)
        )
    return _cut(reply, excuses)


def _cut(reply: Reply, excuses: Excuses) -> Verdict:
    if reply.how == "left":
        return Verdict("left")
    if excuses.router_away:
        return Verdict("cut", reply.reason)
    return Verdict("LOST", f"{reply.reason}, and the router was not away", _shown(reply))


def _shown(reply: Reply) -> dict[str, Any]:
    body = reply.body.decode(errors="replace")
    return {"status": reply.status, "reason": reply.reason, "body": body[-4000:]}
