"""What a person sees of a cluster: loading, logs, the ready block, the end."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..protocol.addresses import is_wildcard
from ..protocol.config import Config

OWN_FACTS = ("name", "role", "endpoint")  # never the same for two workers


class Display(Protocol):
    """Everything the supervisor shows goes through here."""

    def progress(self, name: str, done: int, total: int) -> None: ...

    def say(self, text: str) -> None:
        """The supervisor's own words, or a line of a child with its name before it."""
        ...

    def loaded(self) -> None:
        """Nothing loads any more."""
        ...


class PlainDisplay:
    """Lines, for pipes and logs."""

    def __init__(self) -> None:
        self._quarters: dict[str, int] = {}

    def progress(self, name: str, done: int, total: int) -> None:
        quarter = 4 * done // total if total else 0
        if self._quarters.get(name) != quarter:
            self._quarters[name] = quarter
            self.say(f"{name}: loading {25 * quarter}%")

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def loaded(self) -> None:
        self._quarters.clear()


class TerminalDisplay:
    """Bars while something loads, with the log scrolling above them."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._tasks: dict[str, int] = {}

    def progress(self, name: str, done: int, total: int) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(f"{name} loading", total=total or None)
            self._progress.start()
        self._progress.update(self._tasks[name], completed=done)  # type: ignore[arg-type]

    def say(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def loaded(self) -> None:
        for task in self._tasks.values():
            self._progress.remove_task(task)  # type: ignore[arg-type]
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
    rows = [("model", f"{config.cluster.served_name} ({config.cluster.model})")]
    rows += [(key.replace("_", " "), value) for key, value in shared.items()]
    for one in told:
        own = [one.role] if one.role not in one.name else []
        own += [
            f"{key.replace('_', ' ')} {value}"
            for key, value in one.facts.items()
            if key not in shared and key not in ("name", "role")
        ]
        rows.append((one.name, "; ".join(own)))
    width = max(len(name) for name, _ in rows)
    request = f'{{"model": "{config.cluster.served_name}", "prompt": "Once", "max_tokens": 32}}'
    lines = [
        "",
        f"Penstock is ready at {url}/v1",
        *(f"  {name:<{width}}  {text}".rstrip() for name, text in rows),
        *_warnings(workers),
        "",
        f"curl {url}/v1/completions -H 'Content-Type: application/json' \\",
        f"  -d '{request}'",
        "",
        "Ctrl-C ends it.",
    ]
    return "\n".join(lines)


def _warnings(workers: Sequence[Told]) -> list[str]:
    classes = {one.facts["numeric_class"] for one in workers if "numeric_class" in one.facts}
    if len(classes) < 2:
        return []
    return [
        "  warning: the workers are of different numeric classes "
        f"({', '.join(sorted(classes))}): answers may depend on which of them gave them"
    ]
