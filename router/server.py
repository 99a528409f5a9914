"""The router process: HTTP on one side, workers on the other, one uvloop between them."""

import asyncio
import secrets
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvloop

from ..models.config import ModelConfig, read_config
from ..models.tokenizer import Tokenizer
from ..protocol.addresses import parse_endpoint
from ..protocol.clusterkey import read_key
from ..protocol.config import Config
from ..protocol.config import Model as Configured
from ..protocol.lifeline import Report, report
from ..protocol.seams import Arrival, SystemClock
from ..protocol.sockets import Mailbox
from ..protocol.watch import Watch
from .app import App, Model, Wiring
from .app_keys import read_keys
from .fleet import Fleet
from .flow import Flow
from .flow_numbers import FlowSettings
from .health import health, ready
from .http_connection import Limits
from .http_server import HttpServer
from .inbox import Inbox
from .metrics_page import MAILBOX
from .openai_facts import Defaults, Facts

TICK_SECONDS = 0.1
SILENCE_SECONDS = 5.0  # a worker whose link stands and that says nothing for so long hangs


def main(config: Config, name: str) -> int:
    """Run the router of the configuration until told to stop; returns the exit status."""
    return uvloop.run(RouterProcess(config, report(name)).run())


class RouterProcess:
    """What the router is made of, wired."""

    def __init__(self, config: Config, lifeline: Report):
        settings = config.router
        self._settings = settings
        self._lifeline = lifeline
        self._clock = SystemClock()
        host, port = parse_endpoint(settings.control)
        key = read_key(config.key_path) if config.key_path else None
        bind = settings.control_bind or host
        self._mailbox = Mailbox(settings.name, bind, port, advertise=host, key=key)
        served = [model.name for model in config.served]
        self._fleet = Fleet(SILENCE_SECONDS, self._clock.now(), served)
        self._flow = Flow(
            self._mailbox,
            self._fleet,
            FlowSettings(
                settings.local_prefill_tokens,
                settings.failover_seconds,
                settings.max_attempts,
                request_seconds=settings.request_seconds,
            ),
            self._clock.now,
            first_id=secrets.randbits(42) << 20,  # ids of two routers do not meet
        )
        self._inbox = Inbox(self._mailbox, self._fleet, self._flow)
        self._next_turn: asyncio.Handle | None = None
        self._app = App(self._wiring(config))
        self._server = HttpServer(
            self._app.handle,
            self._app.admit,
            Limits(
                header_bytes=settings.max_header_bytes,
                body_bytes=settings.max_body_bytes,
                connections=settings.max_connections,
                header_seconds=settings.header_seconds,
                body_seconds=settings.body_seconds,
                idle_seconds=settings.idle_seconds,
            ),
        )

    def _wiring(self, config: Config) -> Wiring:
        file = config.router.api_key_file
        keys = read_keys(file=Path(file) if file else None)
        return Wiring(
            requests=self._flow,
            models=[model_of(one) for one in config.served],
            health=self._health,
            ready=self._ready,
            keys=keys,
            workers=lambda: self._fleet.workers.values(),
            flow=self._numbers,
        )

    async def run(self) -> int:
        """Serve until SIGTERM, SIGINT or the supervisor's end."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        for fileno in self._lifeline.filenos():
            loop.add_reader(fileno, stop.set)
        watch = Watch(self._mailbox, loop, self._deliver)
        await self._server.start(self._settings.host, self._settings.port)
        self._app.watch_loop()
        ticking = loop.create_task(self._tick())
        ticking.add_done_callback(lambda task: stop.set())  # without it nothing is noticed
        self._lifeline.ready(url=f"http://{self._settings.host}:{self._server.port}")
        await stop.wait()
        for fileno in self._lifeline.filenos():
            loop.remove_reader(fileno)
        failed = ticking.done()
        self._flow.leave()
        await self._server.stop(grace=self._settings.drain_seconds)
        ticking.cancel()
        watch.close()
        if self._next_turn is not None:
            self._next_turn.cancel()
        self._app.close()
        self._mailbox.close(flush_seconds=0.2)
        if failed:
            ticking.result()  # raises what ended it
        return 0

    def _deliver(self, arrivals: list[Arrival]) -> None:
        self._inbox.deliver(arrivals, self._clock.now())
        self._go_on()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._inbox.tick(self._clock.now())
            self._go_on()

    def _go_on(self) -> None:
        """What is to be placed again takes turns with everything else on the loop."""
        if self._flow.behind and self._next_turn is None:
            self._next_turn = asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._next_turn = None
        self._flow.turn(self._clock.now())
        self._go_on()

    def _numbers(self) -> dict[str, float]:
        faults = {"inbox_faults": self._inbox.faults}
        return asdict(self._flow.counters) | faults | self._mailbox.counts(MAILBOX)

    def _ready(self) -> tuple[bool, dict[str, Any]]:
        return ready(self._fleet)

    def _health(self) -> tuple[bool, dict[str, Any]]:
        more = {
            "in_flight": len(self._flow.in_flight),
            "local_prefill_tokens": self._settings.local_prefill_tokens,
            "longest_loop_gap_seconds": round(self._app.counters.longest_gap, 3),
        }
        return health(self._fleet, self._clock.now(), more)


def model_of(configured: Configured) -> Model:
    """What the OpenAI surface needs of one model; its tokenizer and template are its own."""
    folder = Path(configured.path)
    tokenizer = Tokenizer(folder)
    return Model(facts_of(configured.name, read_config(folder), tokenizer), tokenizer)


def facts_of(name: str, model: ModelConfig, tokenizer: Tokenizer) -> Facts:
    """What the OpenAI surface must know, from the model's own files."""
    told = {key: value for key, value in asdict(model.defaults).items() if value is not None}
    return Facts(
        models=(name,),
        context_length=model.context_length,
        vocabulary=model.vocabulary,
        eos_ids=model.end_token_ids,
        defaults=Defaults(**told),
        created=int(time.time()),
        longest_token=max(len(tokenizer.token_bytes(one)) for one in range(tokenizer.vocabulary)),
    )
