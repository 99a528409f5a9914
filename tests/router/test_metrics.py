"""The page: what is counted, under which names."""

from dataclasses import dataclass, field

import pytest
from prometheus_client.parser import text_string_to_metric_families

from penstock.protocol.messages import Peer, Role, WorkerState
from penstock.router.metrics import Counters, Histogram
from penstock.router.metrics_page import VLLM_NAMES, MetricsPage
from support.surface import CHAT, TEXT, Surface, chat, run


@dataclass
class Worker:
    peer: Peer
    role: Role
    state: WorkerState
    counters: dict[str, float] = field(default_factory=dict)
    stuck: str = ""
    transport: str = "shm"
    model: str = "tiny"


UCX = "nixl UCX (cma)"
WORKERS = [
    Worker(Peer("p0", 1, "x"), "prefill", WorkerState(waiting=2, free_pages=6), {"chunks": 3}),
    Worker(Peer("d0", 2, "y"), "decode", WorkerState(running=5, held_pages=2), {}, "engine", UCX),
]
FLOW = {
    "placed_local": 1,
    "placed_remote": 2,
    "differing": 0,
    "pulled_bytes": 64,
    "inquired": 7,
    "unknown": 5,
    "overdue": 2,
    "inbox_faults": 1,
    "mailbox_garbage": 9,
}


def samples(page: str) -> dict[tuple[str, ...], float]:
    """(name, label values by label name) -> value; the page must parse."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def scrape() -> dict[tuple[str, ...], float]:
    async def scenario() -> str:
        async with Surface(workers=lambda: WORKERS, flow=lambda: FLOW) as surface:
            await surface.post(CHAT, chat())
            await surface.post(TEXT, {"prompt": "abc", "n": 2, "max_tokens": 2, "stream": True})
            await surface.post(TEXT, {"prompt": ""})
            await surface.get("/secret/path")
            return (await surface.get("/metrics")).body.decode()

    return samples(run(scenario()))


def test_requests_and_tokens_are_counted():
    found = scrape()
    assert found["penstock_http_requests_total", CHAT, "200"] == 1
    assert found["penstock_http_requests_total", TEXT, "200"] == 1
    assert found["penstock_http_requests_total", TEXT, "400"] == 1
    assert found["penstock_http_requests_total", "other", "404"] == 1
    assert found["penstock_choices_total", "stop"] == 1
    assert found["penstock_choices_total", "length"] == 2
    assert found["penstock_prompt_tokens_total",] == len("<user>hi\n<assistant>") + 3
    assert found["penstock_generated_tokens_total",] == 3 + 4
    assert found["penstock_cached_tokens_total",] == 4
    assert found["penstock_requests_running",] == 0


def test_times_are_histograms():
    found = scrape()
    assert found["penstock_time_to_first_token_seconds_count",] == 2
    assert found["penstock_inter_token_latency_seconds_count",] == 2 + 1 + 1
    assert found["penstock_request_duration_seconds_count",] == 2
    assert found["penstock_stage_seconds_count", "queue"] == 2
    assert found["penstock_stage_seconds_sum", "prefill"] == pytest.approx(0.004)
    assert found["penstock_stage_seconds_count", "transfer"] == 0


def test_workers_and_the_flow_are_shown():
    found = scrape()
    assert found["penstock_worker_running", "decode", "d0"] == 5
    assert found["penstock_worker_waiting", "prefill", "p0"] == 2
    assert found["penstock_worker_stuck", "decode", "d0"] == 1
    assert found["penstock_worker_counter_chunks_total", "prefill", "p0"] == 3
    assert found["penstock_routing_decisions_total", "remote"] == 2
    assert found["penstock_alarms_total", "differing_token"] == 0
    assert found["penstock_flow_pulled_bytes_total",] == 64
    assert found["penstock_inquiries_total",] == 7
    assert found["penstock_unknown_answers_total",] == 5
    assert found["penstock_requests_past_deadline_total",] == 2
    assert found["penstock_alarms_total", "word_not_understood"] == 1
    assert found["penstock_router_mailbox_total", "garbage"] == 9


def test_what_a_plane_really_uses_is_a_label():
    found = scrape()
    assert found["penstock_worker_transport_info", "prefill", "shm", "p0"] == 1
    assert found["penstock_worker_transport_info", "decode", "nixl UCX (cma)", "d0"] == 1


def test_every_field_of_a_workers_state_is_shown():
    names = {name for name, *_ in scrape()}
    assert {f"penstock_worker_{one}" for one in WorkerState.__struct_fields__} <= names


def test_vllms_names_are_repeated():
    found = scrape()
    assert found["vllm:num_requests_running", "tiny"] == 5
    assert found["vllm:num_requests_waiting", "tiny"] == 2
    assert found["vllm:kv_cache_usage_perc", "tiny"] == 0.25
    names = {name for name, *_ in found}
    for name in VLLM_NAMES:
        assert {name, f"{name}_total", f"{name}_count"} & names


def test_a_histogram_puts_each_value_into_the_first_bucket_that_holds_it():
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    assert histogram.cumulative() == [("1.0", 2), ("2.0", 3), ("+Inf", 4)]
    assert histogram.total == 12.0


def test_an_empty_page_parses():
    page = MetricsPage(Counters(), lambda: (), lambda: {}, {"m": Counters()}).text().decode()
    assert samples(page)["penstock_requests_running",] == 0


def test_the_loops_gaps_are_watched():
    counters = Counters()
    counters.loop_was_late(0.25)
    counters.loop_was_late(0.001)
    page = MetricsPage(counters, lambda: (), lambda: {}, {"m": Counters()}).text().decode()
    found = samples(page)
    assert found["penstock_loop_longest_gap_seconds",] == 0.25
    assert found["penstock_loop_gap_seconds_count",] == 2


def test_the_help_of_unknown_answers_says_all_that_it_counts():
    page = MetricsPage(Counters(), lambda: (), lambda: FLOW, {"m": Counters()}).text().decode()
    (said,) = [one for one in page.splitlines() if "HELP penstock_unknown_answers" in one]
    assert "a choice they were asked for" in said and "only waits for its prefill" in said
