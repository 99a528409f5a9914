"""Paths to handlers, and the one gate before all of them: key, path, method, content type.

app = App(Wiring(requests, [Model(facts, tokenizer)], health, ready))
server = HttpServer(app.handle, app.admit)
await server.start(host, port)
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec

from ..protocol.messages import REVISION
from .answer import Service
from .app_keys import Keys
from .http_exchange import Exchange, HttpRequest
from .metrics import Counters
from .metrics_page import CONTENT_TYPE, MetricsPage, WorkerView
from .openai import OpenAi, Served
from .openai_error import ApiError, quote
from .openai_facts import Facts
from .openai_prompt import Tokenizer
from .openai_tokenise import Tokenising, refuse
from .request import Requests

State = Callable[[], tuple[bool, dict[str, Any]]]
Handler = Callable[[HttpRequest, Exchange], None]

# Families of OpenAI's and Anthropic's API that clients try and that are not served.
UNSERVED = (
    *("responses", "messages", "embeddings", "decisions", "moderations", "images", "audio"),
    *("score", "rerank", "classify", "files", "batches", "fine_tuning", "assistants", "threads"),
)
OPEN_PATHS = frozenset({"/live", "/health", "/ready"})
LOOP_TICK = 0.1  # seconds between two looks at how late the loop is


@dataclass(frozen=True, slots=True)
class Model:
    """One model as the surface sees it."""

    facts: Facts
    tokenizer: Tokenizer


@dataclass(slots=True)
class Wiring:
    """What the surface stands on."""

    requests: Requests
    models: Sequence[Model]  # at least one
    health: State
    ready: State
    keys: Sequence[str] = ()
    workers: Callable[[], Iterable[WorkerView]] = field(default=lambda: ())
    flow: Callable[[], Mapping[str, float]] = field(default=lambda: {})
    counters: Counters = field(default_factory=Counters)


class App:
    """The table of paths."""

    def __init__(self, wiring: Wiring):
        self.counters = wiring.counters
        self._wiring = wiring
        self._keys = Keys(wiring.keys)
        self._tokenising = Tokenising(wiring.counters)
        served = _served(wiring)
        counted = {one.facts.models[0]: one.service.counters for one in served}
        self._page = MetricsPage(wiring.counters, wiring.workers, wiring.flow, counted)
        self._openai = OpenAi(
            served,
            self._tokenising,
            lambda request: self._keys.salt(request.headers.get(b"authorization", b"")),
        )
        self._tick: asyncio.TimerHandle | None = None
        self._routes = self._table()

    def _table(self) -> dict[str, dict[str, Handler]]:
        openai = self._openai
        posts = {
            "/v1/chat/completions": openai.chat,
            "/v1/completions": openai.completions,
            "/tokenize": openai.tokenize,
            "/v1/tokenize": openai.tokenize,
            "/detokenize": openai.detokenize,
            "/v1/detokenize": openai.detokenize,
        }
        gets = {
            "/v1/models": openai.models,
            "/health": lambda request, exchange: _state(exchange, self._wiring.health),
            "/ready": lambda request, exchange: _state(exchange, self._wiring.ready),
            "/live": lambda request, exchange: _state(exchange, _alive),
            "/version": _version,
            "/metrics": self._metrics,
        }
        table: dict[str, dict[str, Handler]] = {path: {"POST": one} for path, one in posts.items()}
        table |= {path: {"GET": one, "HEAD": one} for path, one in gets.items()}
        return table

    # --- the server's two questions ------------------------------------------------------------

    def admit(self, request: HttpRequest) -> ApiError | None:
        """May this be read and handled? Asked before the body is read."""
        try:
            self._check(request)
        except ApiError as error:
            self.counters.answered[(self._label(request.path), error.status)] += 1
            return error
        request.admitted = True
        return None

    def handle(self, request: HttpRequest, exchange: Exchange) -> None:
        exchange.on_finish(self._count)
        try:
            if not request.admitted:
                self._check(request)
            self._handlers(request)[request.method](request, exchange)
        except ApiError as error:
            refuse(exchange, error)

    def _check(self, request: HttpRequest) -> None:
        authorization = request.headers.get(b"authorization", b"")
        if request.path not in OPEN_PATHS and not self._keys.allow(authorization):
            raise ApiError(
                "a valid API key is needed: send Authorization: Bearer <key>",
                status=401,
                code="invalid_api_key",
            )
        handlers = self._handlers(request)
        if request.method not in handlers:
            raise ApiError(
                f"{request.path} does not take {quote(request.method)}; it takes "
                f"{', '.join(handlers)}",
                status=405,
                allow=", ".join(handlers),
            )
        if request.method == "POST":
            _check_content_type(request)

    def _handlers(self, request: HttpRequest) -> dict[str, Handler]:
        path = request.path
        handlers = self._routes.get(path)
        if handlers is not None:
            return handlers
        if path.startswith("/v1/models/"):
            return {"GET": self._openai.model, "HEAD": self._openai.model}
        family = path.removeprefix("/v1/").split("/")[0] if path.startswith("/v1/") else ""
        if family in UNSERVED:
            raise ApiError(
                f"/v1/{family} is not served here; /v1/chat/completions and /v1/completions are",
                status=501,
                code="not_implemented",
            )
        raise ApiError(f"there is no {quote(path)} here", status=404, code="unknown_path")

    def _count(self, exchange: Exchange) -> None:
        self.counters.answered[(self._label(exchange.request.path), exchange.status)] += 1

    def _label(self, path: str) -> str:
        """Only known paths, so that no client can add series to the metrics."""
        if path in self._routes:
            return path
        return "/v1/models/{id}" if path.startswith("/v1/models/") else "other"

    # --- its own life --------------------------------------------------------------------------

    def watch_loop(self) -> None:
        """From now on measure how late the running loop comes to its timers."""
        loop = asyncio.get_running_loop()
        due = loop.time() + LOOP_TICK

        def tick() -> None:
            self.counters.loop_was_late(max(0.0, loop.time() - due))
            self.watch_loop()

        self._tick = loop.call_at(due, tick)

    def close(self) -> None:
        if self._tick is not None:
            self._tick.cancel()
        self._tokenising.close()

    def _metrics(self, request: HttpRequest, exchange: Exchange) -> None:
        exchange.respond(200, self._page.text(), CONTENT_TYPE)


def _served(wiring: Wiring) -> list[Served]:
    """Each model counts for itself; a single one into the general numbers."""
    alone = len(wiring.models) == 1
    return [
        Served(
            model.facts,
            Service(wiring.requests, model.tokenizer, wiring.counters if alone else Counters()),
        )
        for model in wiring.models
    ]


def _check_content_type(request: HttpRequest) -> None:
    given = request.headers.get(b"content-type")
    if given is None:
        return
    kind = given.split(b";")[0].strip().lower()
    if kind != b"application/json" and not kind.endswith(b"+json"):
        named = quote(kind.decode("latin-1"))
        raise ApiError(f"the body must be application/json, not {named}", status=415)


def _state(exchange: Exchange, state: State) -> None:
    well, fields = state()
    exchange.respond(200 if well else 503, msgspec.json.encode(fields))


def _alive() -> tuple[bool, dict[str, Any]]:
    return True, {"status": "alive"}


def _version(request: HttpRequest, exchange: Exchange) -> None:
    try:
        number = version("penstock")
    except PackageNotFoundError:  # run from a checkout that was never installed
        number = "unknown"
    exchange.respond(200, msgspec.json.encode({"version": number, "revision": REVISION}))
