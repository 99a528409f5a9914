"""What a person sees of a cluster: loading, logs, the ready block, the end."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..protocol.addresses import is_wildcard
from ..protocol.config import Config

if TYPE_CHECKING:
    from rich.progress import TaskID

OWN_FACTS = ("name", "role", "endpoint")  # never the same for two workers


class Display(Protocol):
    """Everything the supervisor shows goes through here."""

    def progress(self, name: str, done: int, total: int, what: str = "") -> None:
        """So many bytes of `name` are loaded; `what` is being read."""
        ...

    def say(self, text: str) -> None:
        """The supervisor's own words, or a line of a child with its name before it."""
        ...

    def loaded(self) -> None:
        """Nothing loads any more."""
        ...


class PlainDisplay:
    """Lines, for pipes and logs. The rate is the mean since loading began."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._loads: dict[str, tuple[int, float]] = {}  # quarter, when it began

    def progress(self, name: str, done: int, total: int, what: str = "") -> None:
        quarter = 4 * done // total if total else 0
        now = self._clock()
        last, began = self._loads.get(name, (-1, now))
        if last == quarter:
            return
        self._loads[name] = quarter, began
        rate = f", {done / (now - began) / 1e9:.2f} GB/s" if now > began else ""
        self.say(
            f"{name}: loading {25 * quarter}%, {done / 1e9:.2f} of {total / 1e9:.2f} GB{rate}"
            f"{what and f', {what}'}"
        )

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def loaded(self) -> None:
        self._loads.clear()


class TerminalDisplay:
    """Bars while something loads, with the log scrolling above them."""

    def __init__(self) -> None:
        from rich import progress
        from rich.console import Console

        self._progress = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("{task.fields[what]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def progress(self, name: str, done: int, total: int, what: str = "") -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(f"{name} loading", total=None, what="")
            self._progress.start()
        # What a rank reads becomes known as it reads: the total may change.
        self._progress.update(self._tasks[name], completed=done, total=total or None, what=what)

    def say(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def loaded(self) -> None:
        for task in self._tasks.values():
            self._progress.remove_task(task)
        self._tasks.clear()
        self._progress.stop()


def open_display() -> Display:
    return TerminalDisplay() if sys.stderr.isatty() else PlainDisplay()


def url_of(config: Config) -> str:
    """Where a person on this machine reaches the router."""
    host = "127.0.0.1" if is_wildcard(config.router.host) else config.router.host
    return (
        f"http://[{host}]:{config.router.port}"
        if ":" in host
        else f"http://{host}:{config.router.port}"
    )


@dataclass(frozen=True, slots=True)
class Told:
    """What one process said about itself when it was ready."""

    name: str
    role: str
    facts: Mapping[str, str]


def ready_block(config: Config, told: Sequence[Told]) -> str:
    """Where it is, what is in use, and a line to paste. What all workers share is said once."""
    url = url_of(config)
    workers = [one for one in told if one.role != "router"]
    first = workers[0].facts if workers else {}
    shared = {
        key: value
        for key, value in first.items()
        if key not in OWN_FACTS and all(one.facts.get(key) == value for one in workers)
    }
    rows = [("model", f"{model.name} ({model.path})") for model in config.served]
    rows += [(key.replace("_", " "), value) for key, value in shared.items()]
    of_model = {name: worker.model for name, (_, worker) in config.workers.items()}
    for one in told:
        own = [one.role] if one.role not in one.name else []
        own += [f"model {of_model[one.name]}"] if of_model.get(one.name) else []
        own += [
            f"{key.replace('_', ' ')} {value}"
            for key, value in one.facts.items()
            if key not in shared and key not in ("name", "role")
        ]
        rows.append((one.name, "; ".join(own)))
    width = max(len(name) for name, _ in rows)
    request = f'{{"model": "{config.served[0].name}", "prompt": "Once", "max_tokens": 32}}'
    lines = [
        "",
        f"Penstock is ready at {url}/v1",
        *(f"  {name:<{width}}  {text}".rstrip() for name, text in rows),
        *(line for model in config.served for line in _warnings(model.name, workers, of_model)),
        "",
        f"curl {url}/v1/completions -H 'Content-Type: application/json' \\",
        f"  -d '{request}'",
        "",
        "Ctrl-C ends it.",
    ]
    return "\n".join(lines)


def _warnings(model: str, workers: Sequence[Told], of_model: Mapping[str, str]) -> list[str]:
    mine = [one.facts for one in workers if of_model.get(one.name) in (None, "", model)]
    classes = {facts["numeric_class"] for facts in mine if "numeric_class" in facts}
    if len(classes) < 2:
        return []
    return [
        f"  warning: the workers of {model} are of different numeric classes "
        f"({', '.join(sorted(classes))}): answers may depend on which of them gave them"
    ]
