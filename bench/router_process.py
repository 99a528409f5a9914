"""What the whole router process costs: CPU time per streamed token and per tiny request.

    penstock bench router_process [--streams 64,256] [--rounds 3] [--json FILE]

A real router process (`penstock router`), a worker that joins it over the real protocol and
computes nothing (bench/synthetic.py), and clients: each a process of its own, so that the CPU
time counted is the router's alone. The floor is a bare uvloop server that writes the same bytes
to the same clients at the same pace; the rows take turns. bench/router.py measures the HTTP part
alone, in one process with its source.
"""

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from .accounting import cpu_seconds
from .cluster import Cluster, ClusterError, command, free_port, start
from .report import Cell, Result, Table, median, result_file, shown, spread
from .synthetic import NAME, request_bytes

STEP_SECONDS = 0.02
SETTLE_SECONDS = 0.5
GOAL = 10.0  # µs per streamed token at 64 streams
MICROSECONDS = 1e6
STREAM = {"messages": [{"role": "user", "content": "hi"}], "ignore_eos": True, "stream": True}
TINY = {"prompt": "hi", "max_tokens": 1}
LAST_CHUNK = b"\r\n0\r\n\r\n"


def streaming(tokens: int) -> str:
    """A body for so many tokens; their number comes last, where the floor looks for it."""
    return json.dumps(STREAM | {"max_tokens": tokens})


@dataclass(frozen=True, slots=True)
class Server:
    """The router or the floor: where it answers, whose CPU counts, who knows what was sent."""

    name: str
    url: str
    pid: int
    source: subprocess.Popen[bytes]

    def sent(self) -> int:
        tell(self.source)
        return int(cast(IO[bytes], self.source.stdout).readline())


def synthetic(part: str, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command("bench", "synthetic", part, *words), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def tell(process: subprocess.Popen[bytes]) -> None:
    """A line on its standard input: go on, or answer."""
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


@contextmanager
def ending(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Ends with its standard input; killed where it does not."""
    try:
        yield process
    finally:
        process.communicate(timeout=30)


@contextmanager
def router() -> Iterator[Cluster]:
    """`penstock router`, which waits for workers."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cluster.toml"
        port = free_port()
        control = f"tcp://127.0.0.1:{free_port()}"
        file.write_text(
            f'[router]\nport = {port}\ncontrol = "{control}"\n[[aggregated]]\nname = "{NAME}"\n'
        )
        running = start(
            ["router", "--config", str(file), "--name", "router"], f"http://127.0.0.1:{port}"
        )
        running.control = control
        try:
            yield running
        finally:
            running.end()


@contextmanager
def servers() -> Iterator[tuple[Server, Server]]:
    """Floor and router, both ready."""
    with router() as running, ending(synthetic("worker", "--router", running.control)) as worker:
        running.wait(running.site.is_ready, "the synthetic worker has joined")
        address = ("127.0.0.1", int(running.url.rpartition(":")[2]))
        with tempfile.TemporaryDirectory() as folder:
            chunk, answer = Path(folder) / "chunk", Path(folder) / "answer"
            chunk.write_bytes(token_chunk(exchange(address, streaming(8), LAST_CHUNK)))
            answer.write_bytes(exchange(address, json.dumps(TINY), b"}"))
            port = free_port()
            files = ["--chunk", str(chunk), "--answer", str(answer)]
            with ending(synthetic("floor", "--port", str(port), *files)) as bare:
                cast(IO[bytes], bare.stdout).readline()
                floor = Server("floor", f"http://127.0.0.1:{port}", bare.pid, bare)
                yield floor, Server("router", running.url, running.pid, worker)


def exchange(address: tuple[str, int], body: str, end: bytes) -> bytes:
    """One whole answer as it comes."""
    answer = b""
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(request_bytes(body))
        while not answer.endswith(end):
            more = connection.recv(1 << 16)
            if not more:
                raise ClusterError(f"the answer broke off: {answer[-300:]!r}")
            answer += more
    return answer


def token_chunk(answer: bytes) -> bytes:
    """The HTTP chunk of a token in the middle of a stream."""
    events = [part for part in answer.split(b"\r\n") if b'"content":"' in part]
    event = events[len(events) // 2]
    return b"%x\r\n%b\r\n" % (len(event), event)


# --- measuring ------------------------------------------------------------------------------------


def client(server: Server, body: str, connections: int, warm: int, requests: int):
    words = ["--url", server.url, "--body", body, "--connections", str(connections)]
    words += ["--warm", str(warm), "--requests", str(requests)]
    return synthetic("client", *words)


def expect(process: subprocess.Popen[bytes], word: str) -> None:
    assert process.stdout is not None
    said = process.stdout.readline().decode().strip()
    if said != word:
        raise ClusterError(f"the client said {said!r} instead of {word!r}")


def per_token(server: Server, streams: int, seconds: float) -> dict[str, float]:
    """CPU µs of a token while all streams go on."""
    tokens = int((seconds + 4 * SETTLE_SECONDS) / STEP_SECONDS)
    with ending(client(server, streaming(tokens), streams, 0, streams)) as asking:
        expect(asking, "begun")
        time.sleep(SETTLE_SECONDS)
        sent, cpu, begun = server.sent(), cpu_seconds(server.pid), time.monotonic()
        time.sleep(seconds)
        sent, cpu = server.sent() - sent, cpu_seconds(server.pid) - cpu
        elapsed = time.monotonic() - begun
        expect(asking, "done")
    return {
        "microseconds": cpu / sent * MICROSECONDS,
        "per_second": sent / elapsed,
        "core_share": cpu / elapsed,
    }


def per_request(server: Server, concurrency: int, requests: int) -> dict[str, float]:
    """CPU µs of a whole request for one token, in a closed loop."""
    warm = max(concurrency, requests // 10)
    with ending(client(server, json.dumps(TINY), concurrency, warm, requests)) as asking:
        expect(asking, "ready")
        cpu, begun = cpu_seconds(server.pid), time.monotonic()
        tell(asking)
        expect(asking, "done")
        cpu, elapsed = cpu_seconds(server.pid) - cpu, time.monotonic() - begun
    return {
        "microseconds": cpu / requests * MICROSECONDS,
        "per_second": requests / elapsed,
        "core_share": cpu / elapsed,
    }


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All rounds; in each, floor and router take turns."""
    rounds: list[dict[str, Any]] = []
    with servers() as both:
        for number in range(options.rounds):
            for streams in options.streams:
                for server in both:
                    found = per_token(server, streams, options.seconds)
                    what = f"token, {streams} streams"
                    rounds.append({"round": number, "what": what, "server": server.name, **found})
            for server in both:
                found = per_request(server, options.concurrency, options.requests)
                what = f"tiny request, {options.concurrency} at a time"
                rounds.append({"round": number, "what": what, "server": server.name, **found})
    return rounds


def table(rounds: list[dict[str, Any]]) -> Table:
    rows: list[list[Cell]] = []
    for what in dict.fromkeys(one["what"] for one in rounds):
        for name in ("floor", "router"):
            row = [one for one in rounds if one["what"] == what and one["server"] == name]
            costs = [one["microseconds"] for one in row]
            rates = [median([one[key] for one in row]) for key in ("per_second", "core_share")]
            rows.append([what, name, median(costs), spread(costs), *rates])
    return Table(
        "CPU of the router process",
        ["per", "process", "CPU µs", "lowest..highest", "per second", "cores busy"],
        rows,
        [
            "Medians over rounds. The floor writes the same bytes and does nothing else.",
            verdict(rounds),
        ],
    )


def verdict(rounds: list[dict[str, Any]]) -> str:
    what = "token, 64 streams"
    found = median(
        one["microseconds"] for one in rounds if (one["what"], one["server"]) == (what, "router")
    )
    if found is None:
        return f"The goal, {GOAL:.0f} µs per token at 64 streams, was not measured."
    reached = "reached" if found <= GOAL else "missed"
    return f"Goal: at most {GOAL:.0f} µs per token at 64 streams: {reached} with {shown(found)}."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--streams", type=lambda text: [int(one) for one in text.split(",")], default=[64, 256]
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="per figure")
    parser.add_argument("--concurrency", type=int, default=32, help="of tiny requests")
    parser.add_argument("--requests", type=int, default=5000, help="tiny ones per figure")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="penstock bench router_process",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=result_file, metavar="FILE")
    options = parser.parse_args(arguments)
    result = Result(
        "router_process", {key: value for key, value in vars(options).items() if key != "json"}
    )
    try:
        result.rounds = measure(options)
    except (ClusterError, OSError) as error:
        print(f"penstock bench router_process: {error}", file=sys.stderr)
        return 1
    result.finish([table(result.rounds)], options.json)
    return 0
