"""The soak's parts: it must see what is wrong, excuse only what was broken, and repeat itself."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from penstock.bench.soak import told
from penstock.bench.traffic.answers import contradiction, difference, of_stream, of_whole
from penstock.bench.traffic.client import Reply, exchange, get
from penstock.bench.traffic.faults import MOST_ENDS, FaultPlan
from penstock.bench.traffic.judge import Excuses, judge
from penstock.bench.traffic.requests import KINDS, Asked, Case, asked, cases
from penstock.bench.traffic.run import Ended, Outcome, Violation
from penstock.bench.traffic.tables import tables
from penstock.bench.traffic.watch import Totals
from penstock.deploy.restarts import WINDOW_SECONDS

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
LOGPROBS = {"tokens": ["a", "b"], "token_logprobs": [-1.0, -2.0]}
CASE = Case(0, "greedy", "/v1/completions", {"prompt": "x"})
STREAMED, WHOLE = Asked(CASE, True, ""), Asked(CASE, False, "")


def choice(**fields: Any) -> dict[str, Any]:
    one = {"index": 0, "text": "ab", "token_ids": [1, 2], "logprobs": LOGPROBS}
    return one | {"finish_reason": "length", "stop_reason": None} | fields


def whole(**fields: Any) -> bytes:
    return msgspec.json.encode({"choices": [choice(**fields)], "usage": USAGE})


def stream(*events: dict[str, Any], done: bool = True) -> bytes:
    written = b"".join(b"data: " + msgspec.json.encode(one) + b"\n\n" for one in events)
    return written + (b"data: [DONE]\n\n" if done else b"")


def part(text: str, token: int, finish: str | None = None, index: int = 0) -> dict[str, Any]:
    number = len(LOGPROBS["tokens"]) if text == "" else "ab".index(text)
    logprobs = {name: values[number : number + 1] for name, values in LOGPROBS.items()}
    fields = choice(text=text, token_ids=[token], logprobs=logprobs, finish_reason=finish)
    return {"choices": [fields | {"index": index}]}


ENDING = {"choices": [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}]}
LAST = {"choices": [], "usage": USAGE}
RIGHT = of_whole(whole())


def reply(body: bytes, how: Any = "complete", status: int = 200) -> Reply:
    return Reply(how, status, body, 1.0, 0.1, "the connection was closed")


# --- answers --------------------------------------------------------------------------------------


def test_a_stream_is_the_same_answer_as_a_whole_one() -> None:
    streamed = of_stream(stream(part("a", 1), part("b", 2), ENDING, LAST))
    assert streamed.done and not streamed.error
    assert difference(RIGHT, streamed.answer) == ""


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"token_ids": [1, 3]}, "tokens of choice 0"),
        ({"text": "aB"}, "text of choice 0"),
        ({"finish_reason": "stop"}, "finish of choice 0"),
        ({"logprobs": LOGPROBS | {"token_logprobs": [-1.0, -2.5]}}, "logprobs of choice 0"),
        ({"index": 1}, "choices [1]"),
    ],
)
def test_every_difference_is_seen(fields: dict[str, Any], problem: str) -> None:
    assert problem in difference(RIGHT, of_whole(whole(**fields)))


def test_what_is_not_finished_is_compared_as_far_as_it_goes() -> None:
    assert contradiction(RIGHT, of_stream(stream(part("a", 1), done=False)).answer) == ""
    assert "tokens" in contradiction(RIGHT, of_stream(stream(part("a", 9), done=False)).answer)
    other = of_stream(stream(part("a", 1, index=3), done=False)).answer
    assert "choice 3" in contradiction(RIGHT, other)
    early = of_stream(stream(part("a", 1, finish="stop"), done=False)).answer
    assert "finish" in contradiction(RIGHT, early)


# --- the judge ------------------------------------------------------------------------------------

ERROR = stream(part("a", 1), {"error": {"message": "no route"}}, done=False)
REFUSAL = msgspec.json.encode({"error": {"message": "no route"}})
ROLE, ROUTER, NOTHING = Excuses(role_away=True), Excuses(router_away=True), Excuses()


@pytest.mark.parametrize(
    ("one", "got", "excuses", "outcome"),
    [
        (WHOLE, reply(whole()), NOTHING, "right"),
        (WHOLE, reply(whole(text="ax")), ROLE, "WRONG"),
        (STREAMED, reply(stream(part("a", 1), part("b", 2), ENDING, LAST)), NOTHING, "right"),
        (STREAMED, reply(stream(part("a", 1), ENDING, LAST)), ROLE, "WRONG"),
        (STREAMED, reply(stream(part("a", 1), done=False)), ROUTER, "LOST"),
        (STREAMED, reply(ERROR), ROLE, "broken off"),
        (STREAMED, reply(ERROR), NOTHING, "UNEXCUSED"),
        (WHOLE, reply(REFUSAL, status=503), ROLE, "refused"),
        (WHOLE, reply(REFUSAL, status=503), NOTHING, "UNEXCUSED"),
        (WHOLE, reply(REFUSAL, status=400), ROLE, "UNEXCUSED"),
        (WHOLE, reply(b"oh", status=500), ROLE, "LOST"),
        (WHOLE, reply(b"", "cut", 0), ROUTER, "cut"),
        (WHOLE, reply(b"", "cut", 0), ROLE, "LOST"),
        (STREAMED, reply(stream(part("a", 1), done=False), "cut"), ROUTER, "cut"),
        (STREAMED, reply(stream(part("a", 9), done=False), "cut"), ROUTER, "WRONG"),
        (STREAMED, reply(stream(part("a", 1), done=False), "left"), NOTHING, "left"),
        (STREAMED, reply(stream(part("b", 1), done=False), "left"), NOTHING, "WRONG"),
        (WHOLE, reply(b"", "left", 0), NOTHING, "left"),
        (WHOLE, reply(b"", "hung", 0), ROLE, "HUNG"),
    ],
)
def test_verdicts(one: Asked, got: Reply, excuses: Excuses, outcome: str) -> None:
    assert judge(one, RIGHT, got, excuses).outcome == outcome


# --- what is asked, what breaks -------------------------------------------------------------------


def test_requests_repeat_themselves_and_are_of_every_kind() -> None:
    wanted = cases(3, 2 * len(KINDS))
    assert wanted == cases(3, 2 * len(KINDS)) != cases(4, 2 * len(KINDS))
    assert set(Counter(one.kind for one in wanted).values()) == {2}
    assert all("seed" in one.body for one in wanted), "only such have one right answer"
    chance = random.Random(1)
    ways = [asked(wanted[0], chance) for _ in range(200)]
    assert {one.stream for one in ways} == {True, False}
    assert any(one.salt for one in ways) and any(one.leaves for one in ways)
    assert all(one.leave_events == 0 for one in ways if not one.stream)


def test_faults_repeat_themselves_and_spare_the_supervisor_s_patience() -> None:
    roles = {"router": "router"} | {f"{role}-{n}": role for role in ("p", "d") for n in (0, 1)}

    def drawn() -> list[tuple[str, str]]:
        plan = FaultPlan(seed=1, mean_seconds=1.0)
        made = [one for at in range(400) for one in plan.next(roles, set(roles), float(at))]
        return [(one.kind, one.name) for one in made]

    assert drawn() == drawn()
    ends = Counter(name for kind, name in drawn() if kind != "stop")
    assert 400 < WINDOW_SECONDS and set(ends.values()) == {MOST_ENDS}
    assert {kind for kind, _ in drawn()} == {"kill", "drain", "stop"}
    spared = FaultPlan(1, 1.0, frozenset({"d-1", "router"}))
    made = [one for at in range(400) for one in spared.next(roles, set(roles), float(at))]
    assert {one.kind for one in made if one.name in spared.spared} == {"stop"}
    broken = FaultPlan(seed=1, mean_seconds=1.0)
    for at in range(100):
        assert all(one.name == "d-1" for one in broken.next(roles, {"d-1"}, float(at)))


def test_counters_go_on_where_a_process_began_anew() -> None:
    totals = Totals()
    for value in (3.0, 5.0, 1.0, 4.0):
        totals.add({'x_total{worker="a"}': value, 'x_total{worker="b"}': 1.0})
    assert totals.of("x_total") == 5 + 4 + 1


# --- the client -----------------------------------------------------------------------------------

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[tuple[str, int]]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[:2]
    finally:
        server.close()
        await server.wait_closed()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def meet(written: bytes, stay: bool, **how: Any) -> Reply:
    """Ask a server that writes this, and then stays or goes."""
    left = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(written)
        if stay:
            await reader.read()  # until the client goes
        left.set()
        writer.close()

    async with listening(handler) as address:
        got = await exchange(address, get("/x"), how.pop("limit", 30.0), **how)
        await asyncio.wait_for(left.wait(), 30)
    return got


def test_how_an_exchange_ends() -> None:
    events = HEAD + chunk(b"data: 1\n\n") + chunk(b"data: 2\n\n")
    whole_answer = asyncio.run(meet(events + b"0\r\n\r\n", stay=True))
    assert (whole_answer.how, whole_answer.body) == ("complete", b"data: 1\n\ndata: 2\n\n")
    assert asyncio.run(meet(events, stay=False)).how == "cut"
    assert asyncio.run(meet(events, stay=True, leave_events=2)).how == "left"
    assert asyncio.run(meet(HEAD, stay=True, leave_seconds=0.01)).how == "left"
    assert asyncio.run(meet(HEAD, stay=True, limit=0.05)).how == "hung"
    assert asyncio.run(meet(b"nonsense\r\n\r\n", stay=True)).how == "cut"
    assert asyncio.run(exchange(("127.0.0.1", 1), get("/x"), 5.0)).how == "cut"


# --- what is told ---------------------------------------------------------------------------------


def test_tables_and_violations_say_what_happened() -> None:
    outcome = Outcome()
    outcome.exchanges.append(Ended("greedy", "right", 0.0, 1.5, 0.1, True))
    outcome.exchanges.append(Ended("greedy", "WRONG", 0.0, 1.5, 0.1, False))
    text = "\n".join(table.text() for table in tables(outcome))
    assert "greedy" in text and "WRONG" in text
    violation = Violation(
        "WRONG: 0 greedy", 3.0, "0 greedy", {"prompt": "x"}, RIGHT, None, [(2, "kill")]
    )
    assert "kill" in told(violation) and "prompt" in told(violation)
