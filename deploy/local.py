"""A cluster on this machine: start its processes, show them, restart them, end them all.

    STARTING --all ready--> SERVING --signal, or nothing can serve--> STOPPING -> gone

The supervisor loads no model and imports no torch. It waits for four things: what a child reports
(lifeline), what a child prints, a signal, and the time at which a child is to be started again.
"""

import http.client
import json
import selectors
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..protocol.addresses import is_wildcard
from ..protocol.config import Config, dump
from ..protocol.lifeline import Progress, Ready
from ..protocol.seams import Clock, SystemClock
from .child import Child
from .display import Display, Told, open_display, ready_block
from .ports import PortError, check_ports
from .restarts import Restarts
from .run_directory import make_run_directory, remove_run_directory
from .signals import SignalPipe

GRACE_SECONDS = 5.0  # to end in, beyond what draining takes
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

ASK_SECONDS = 0.2
Command = Callable[[str, Path, str], list[str]]  # role, configuration file, name
Serving = Callable[[Config], bool]


def role_command(role: str, file: Path, name: str) -> list[str]:
    """How a role is started on this machine. -P: the current folder does not shadow a package."""
    module = __name__.partition(".")[0]
    return [sys.executable, "-P", "-m", module, role, "--config", str(file), "--name", name]


@dataclass(slots=True)
class Post:
    """One place in the cluster, whichever process holds it."""

    name: str
    role: str
    child: Child | None = None
    restarts: Restarts = field(default_factory=Restarts)
    start_at: float | None = 0.0  # None: it runs, or it is given up


def router_serves(config: Config) -> bool:
    """Whether the router would place a request for any of its models now."""
    router = config.router
    host = "127.0.0.1" if is_wildcard(router.host) else router.host
    asked = http.client.HTTPConnection(host, router.port, timeout=ASK_SECONDS)
    try:
        asked.request("GET", "/ready")
        answer = asked.getresponse()
        return answer.status == http.HTTPStatus.OK and all(json.load(answer)["models"].values())
    except (OSError, ValueError, http.client.HTTPException):
        return False
    finally:
        asked.close()


def serve(config: Config, command: Command = role_command, serving: Serving = router_serves) -> int:
    """Run the cluster until a signal; the exit status."""
    try:
        check_ports(config)
    except PortError as error:
        print(f"penstock: {error}", file=sys.stderr)
        return 1
    folder = make_run_directory()
    try:
        file = folder / "cluster.toml"
        file.write_text(dump(config))
        with SignalPipe([*STOP_SIGNALS, signal.SIGCHLD]) as signals:
            supervisor = Supervisor(Plan(config, file, command, serving), open_display(), signals)
            try:
                return supervisor.run()
            finally:
                supervisor.close()
    finally:
        remove_run_directory(folder)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run, and how; tests have roles without models."""

    config: Config
    file: Path
    role_command: Command
    serving: Serving

    def command(self, post: Post) -> list[str]:
        return self.role_command(post.role, self.file, post.name)


class Supervisor:
    """Owns the children. Ends with none left."""

    def __init__(self, plan: Plan, display: Display, signals: SignalPipe) -> None:
        self._config = config = plan.config
        self._plan = plan
        self._display = display
        self._signals = signals
        self._clock: Clock = SystemClock()
        self._posts = [Post(config.router.name, "router")]
        self._posts += [Post(name, role) for name, (role, _) in config.workers.items()]
        self._selector = selectors.DefaultSelector()
        self._selector.register(signals.fileno(), selectors.EVENT_READ, None)
        self._watched: set[int] = set()
        self._announced = False
        self._ask_at: float | None = None  # when to ask the router again whether it can serve
        self._stopping = False
        self._signalled = 0  # how many signals said stop
        self._fault = ""  # why the cluster cannot go on

    def run(self) -> int:
        while not self._signalled and not self._fault:
            self._start_due()
            self._turn(self._seconds_until_due())
            self._announce()
        self._display.loaded()
        if self._fault:
            self._display.say(f"penstock: {self._fault}")
        clean = self._stop()
        return 0 if clean and not self._fault else 1

    def close(self) -> None:
        """Whatever is left ends at once."""
        for post in self._posts:
            if post.child is not None:
                post.child.finish()
        self._selector.close()

    def _turn(self, seconds: float | None) -> None:
        """Wait, then take in all that happened."""
        for fileno in set().union(*(post.child.filenos() for post in self._posts if post.child)):
            if fileno not in self._watched:
                self._selector.register(fileno, selectors.EVENT_READ)
                self._watched.add(fileno)
        self._selector.select(seconds)
        self._signalled += sum(number in STOP_SIGNALS for number in self._signals.read())
        for post in self._posts:
            if post.child is not None:
                self._attend(post, post.child)

    # --- starting --------------------------------------------------------------------------------

    def _start_due(self) -> None:
        now = self._clock.now()
        for post in self._posts:
            if post.start_at is not None and now >= post.start_at:
                post.start_at = None
                try:
                    post.child = Child(post.name, self._plan.command(post))
                except OSError as error:
                    self._fault = f"{post.name} cannot be started: {error}"

    def _seconds_until_due(self) -> float | None:
        times = [post.start_at for post in self._posts if post.start_at is not None]
        times += [self._ask_at] if self._ask_at is not None else []
        return max(0.0, min(times) - self._clock.now()) if times else None

    def _announce(self) -> None:
        """Once, when every process is ready and the router has met enough of them."""
        self._ask_at = None
        if self._announced or not all(post.child and post.child.ready for post in self._posts):
            return
        if not self._plan.serving(self._config):
            self._ask_at = self._clock.now() + ASK_SECONDS
            return
        self._announced = True
        told = [
            Told(post.name, post.role, post.child.ready.facts)
            for post in self._posts
            if post.child and post.child.ready
        ]
        print(ready_block(self._config, told), flush=True)

    # --- running ---------------------------------------------------------------------------------

    def _attend(self, post: Post, child: Child) -> None:
        """Everything one child has said, and its end."""
        ended = child.ended()  # asked first: what it said before its end is in the pipes by then
        watched = child.filenos()
        events = child.read_events(to_end=ended)
        for line in child.read_lines(to_end=ended):  # printed before those events
            self._display.say(f"[{post.name}] {line}")
        for event in events:
            if isinstance(event, Progress):
                self._display.progress(post.name, event.done, event.total, event.what)
            elif isinstance(event, Ready):
                self._heard_ready(post)
        for fileno in watched - (set() if ended else child.filenos()):
            if fileno in self._watched:
                self._selector.unregister(fileno)
                self._watched.remove(fileno)
        if ended:
            child.finish()
            post.child = None
            if not self._stopping:
                self._replace(post, child)

    def _heard_ready(self, post: Post) -> None:
        if all(one.child is None or one.child.ready for one in self._posts):
            self._display.loaded()
        if self._announced:
            self._display.say(f"penstock: {post.name} is ready again")

    def _replace(self, post: Post, child: Child) -> None:
        reason = child.reason()
        now = self._clock.now()
        if not self._announced and child.failure:
            self._fault = f"{post.name} cannot start: {reason}"
            return
        post.start_at = post.restarts.ended(now, child.ready is not None, reason)
        if post.start_at is not None:
            pause = post.start_at - now
            self._display.say(f"penstock: {post.name} ended ({reason}); again in {pause:.1f} s")
            return
        if not self._announced or not self._can_serve():
            self._fault = f"{post.name}: {post.restarts.given_up}"
        else:
            self._display.say(f"penstock: {post.name} is given up: {post.restarts.given_up}")

    def _can_serve(self) -> bool:
        """The router lives, and so does a worker that can answer."""
        alive = {post.role for post in self._posts if not post.restarts.given_up}
        return "router" in alive and bool(alive & {"decode", "aggregated"})

    # --- stopping --------------------------------------------------------------------------------

    def _stop(self) -> bool:
        """The router first: it finishes what it serves, and then the workers have no work left.
        False if one had to be killed."""
        self._stopping = True
        self._signalled = 0
        workers = [worker for _, worker in self._config.workers.values()]
        patience = [self._config.router.drain_seconds]
        patience.append(max((worker.drain_seconds for worker in workers), default=0.0))
        router, *others = self._posts
        clean = True
        for posts, seconds in zip(([router], others), patience, strict=True):
            clean &= self._end(posts, GRACE_SECONDS + (seconds if self._announced else 0.0))
        return clean

    def _end(self, posts: list[Post], seconds: float) -> bool:
        """Ask, wait for so long (or for a second signal), then kill."""
        for post in posts:
            if post.child is not None:
                post.child.terminate()
        give_up = self._clock.now() + seconds
        killed = False
        while left := [post for post in posts if post.child is not None]:
            now = self._clock.now()
            if not killed and (self._signalled or now >= give_up):
                killed = True
                names = ", ".join(post.name for post in left)
                self._display.say(f"penstock: killing what has not ended: {names}")
                for post in left:
                    if post.child is not None:
                        post.child.kill()
            self._turn(None if killed else give_up - now)
        return not killed
