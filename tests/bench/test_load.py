"""The load generator against a scripted server, and what is made of its records."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from penstock.bench import accounting, load, processes, report, router_process, serve, synthetic
from penstock.bench.cluster import Site
from penstock.bench.load import Plan, prompt, request_bytes
from penstock.bench.router_process import token_chunk

METRICS = """# HELP penstock_stage_seconds Where the time of a request went
penstock_stage_seconds_bucket{le="0.1",stage="queue"} 3.0
penstock_stage_seconds_count{stage="queue"} 4.0
penstock_stage_seconds_sum{stage="queue"} 2.0
penstock_requests_running 1.0
"""


class Scripted(BaseHTTPRequestHandler):
    """Answers as a router would; `server.script` says what of it goes wrong."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        pages = {"/v1/models": json.dumps({"data": [{"id": "scripted"}]}), "/metrics": METRICS}
        self._whole(200, pages[self.path])

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        script: dict[str, Any] = self.server.script  # type: ignore[attr-defined]
        script.setdefault("bodies", []).append(body)
        if script.get("status"):
            self._whole(script["status"], "no route")
            return
        tokens = body["max_tokens"] - script.get("missing", 0)
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": tokens}
        events = [json.dumps({"choices": [{"text": "a"}], "usage": None})] * tokens
        events.append(json.dumps({"choices": [], "usage": usage}))
        if script.get("error"):
            events = [events[0], json.dumps({"error": {"message": script["error"]}})]
        elif not script.get("open_end"):
            events.append("[DONE]")
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for event in events:
            self._chunk(f"data: {event}\n\n".encode())
        self._chunk(b"")

    def _chunk(self, content: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(content), content))

    def _whole(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away in the middle is part of the tests."""


@contextmanager
def scripted(**script: Any):
    server = Server(("127.0.0.1", 0), Scripted)
    server.script = script  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=[0.01])
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", script
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def words(url: str, *more: str) -> list[str]:
    counts = ["--concurrency", "2", "--requests", "5", "--output-tokens", "4"]
    return ["--url", url, "--prompt-tokens", "7", *counts, *more]


def test_every_request_is_recorded(capsys):
    with scripted() as (url, script):
        assert load.main(words(url)) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert len(outcome["records"]) == 5 and not outcome["failures"]
    for record in outcome["records"]:
        assert (record["tokens"], record["events"], record["prompt_tokens"]) == (4, 4, 7)
        assert len(record["gaps"]) == 3 and record["first"] > 0
    prompts = [tuple(body["prompt"]) for body in script["bodies"]]
    assert len(set(prompts)) == 5, "a prefix cache could answer"
    assert all(body["ignore_eos"] and body["model"] == "scripted" for body in script["bodies"])


def test_the_same_prompt_where_it_is_asked_for(capsys):
    with scripted() as (url, script):
        assert load.main(words(url, "--same-prompt")) == 0
    assert len({tuple(body["prompt"]) for body in script["bodies"]}) == 1


@pytest.mark.parametrize(
    "script, complaint",
    [
        ({"status": 503}, "HTTP 503: no route"),
        ({"missing": 1}, "3 tokens came, 4 were asked for"),
        ({"error": "worker lost"}, "worker lost"),
        ({"open_end": True}, "without [DONE]"),
    ],
)
def test_an_answer_that_is_not_whole_fails_aloud(script, complaint, capsys):
    with scripted(**script) as (url, _):
        assert load.main(words(url)) == 1
    assert complaint in capsys.readouterr().err


def test_prompts_depend_on_seed_and_number_alone():
    plan = Plan("http://x", 100, 1, 1, 1, seed=3)
    assert len(prompt(plan, 1)) == 100
    assert prompt(plan, 1) == prompt(plan, 1) != prompt(plan, 2)
    head, _, payload = request_bytes(plan, 1).partition(b"\r\n\r\n")
    assert b"Content-Length: %d" % len(payload) in head


# --- bench serve ----------------------------------------------------------------------------------


def test_a_running_server_is_measured_and_the_result_kept(tmp_path, capsys):
    file = tmp_path / "serve.json"
    with scripted() as (url, _):
        options = ["--url", url, "--lengths", "7,9", "--streams", "1,2", "--rounds", "2"]
        budget = ["--output-tokens", "4", "--budget-tokens", "70", "--json", str(file)]
        assert serve.main([*options, *budget]) == 0
    kept = json.loads(file.read_text())
    cells = {(one["prompt_tokens"], one["concurrency"]) for one in kept["rounds"]}
    assert cells == {(7, 1), (7, 2)} and len(kept["rounds"]) == 4
    assert kept["arguments"]["rounds"] == 2
    latency, stages = kept["tables"]
    assert len(latency["rows"]) == len(stages["rows"]) == 2
    assert any("9 x 1, 9 x 2" in note for note in latency["notes"]), "left out aloud"
    assert "TPOT is its mean" in capsys.readouterr().out


def test_failed_requests_end_the_benchmark(capsys):
    with scripted(status=500) as (url, _):
        assert serve.main(["--url", url, "--lengths", "7", "--streams", "1"]) == 1
    assert "HTTP 500" in capsys.readouterr().err


def test_layouts_are_flags_of_serve():
    assert serve.layout_words("2p3d") == ["--prefill", "2", "--decode", "3"]
    assert serve.layout_words("aggregated") == ["--aggregated"]
    for wrong in ("", "1p", "p1d", "1p1x", "both"):
        with pytest.raises(ValueError, match="no layout"):
            serve.layout_words(wrong)


def test_a_summary_counts_gaps_apart_from_first_tokens():
    records = [
        {"first": 0.5, "gaps": [0.1, 0.3], "tokens": 3, "events": 3, "prompt_tokens": 10},
        {"first": 1.5, "gaps": [0.2], "tokens": 3, "events": 2, "prompt_tokens": 10},
    ]
    records = [record | {"cached_tokens": 0} for record in records]
    found = serve.summary({"records": records, "wall_seconds": 2.0, "cpu_seconds": 0.1})
    assert found["ttft_p50"] == 1.0
    assert found["itl_p50"] == 0.2 and found["itl_mean"] == pytest.approx(0.2)
    assert found["output_tokens_per_second"] == 3.0
    assert found["prompt_tokens_per_second"] == 10.0
    assert found["tokens_without_text"] == 1


def test_metrics_are_read_without_buckets_and_stages_are_means():
    with scripted() as (url, _):
        site = Site(url)
        metrics = site.metrics()
        site.close()
    assert metrics["penstock_requests_running"] == 1.0
    assert not any("bucket" in name for name in metrics)
    assert serve.stage_mean(metrics, "queue") == 0.5
    assert serve.stage_mean(metrics, "transfer") is None


# --- the others -----------------------------------------------------------------------------------


def test_the_floor_writes_a_token_from_the_middle():
    event = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
    role = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
    answer = b"HTTP/1.1 200 OK\r\n\r\n" + b"".join(
        b"%x\r\n%b\r\n" % (len(one), one) for one in (role, event, event, event)
    )
    assert token_chunk(answer) == b"%x\r\n%b\r\n" % (len(event), event)


@pytest.mark.slow
def test_a_real_router_serves_a_worker_that_computes_nothing(tmp_path, capsys):
    file = tmp_path / "router.json"
    small = ["--streams", "2", "--seconds", "0.1", "--concurrency", "2", "--requests", "50"]
    assert router_process.main([*small, "--rounds", "1", "--json", str(file)]) == 0
    rounds = json.loads(file.read_text())["rounds"]
    assert [one["server"] for one in rounds] == ["floor", "router"] * 2
    assert all(one["microseconds"] > 0 for one in rounds)
    assert "was not measured" in capsys.readouterr().out, "there were no 64 streams"


@pytest.mark.parametrize(
    "bench", [accounting, load, processes, report, router_process, serve, synthetic]
)
def test_every_benchmark_explains_itself(bench, capsys):
    with pytest.raises(SystemExit) as ended:
        bench.main(["--help"])
    assert ended.value.code == 0
    name = bench.__name__.rpartition(".")[2]
    assert f"penstock bench {name}" in capsys.readouterr().out
