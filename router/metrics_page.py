"""The page a Prometheus server scrapes. Reads counters when asked, keeps nothing.

Own names begin with penstock_. The names vLLM gives its own are repeated at the end, because
dashboards, autoscalers and gateways look for them; docs in VLLM_NAMES.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from ..protocol.messages import Peer, Role, WorkerState
from .metrics import Counters, Histogram, total

CONTENT_TYPE = b"Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"

STAGES = ("queue", "prefill", "transfer", "admission_wait", "first_decode_step")

MAILBOX = "mailbox_"  # before the names of what the router's mailbox counts

UNKNOWN_HELP = (
    "Answers of workers that they do not have a choice they were asked for. A choice that only "
    "waits for its prefill is among them: the decode worker it will go to does not know it yet"
)
HELP = {"penstock_unknown_answers": UNKNOWN_HELP}  # where the name does not say it all

# Counters of the flow that have a name of their own: (metric, label, value). The rest is
# penstock_flow_<name>_total.
FLOW_NAMES = {
    "placed_local": ("penstock_routing_decisions", "path", "local"),
    "placed_remote": ("penstock_routing_decisions", "path", "remote"),
    "placed_aggregated": ("penstock_routing_decisions", "path", "aggregated"),
    "placed_prefill_only": ("penstock_routing_decisions", "path", "prefill_only"),
    "differing": ("penstock_alarms", "kind", "differing_token"),
    "repeated": ("penstock_repeated_tokens", "", ""),
    "replaced": ("penstock_placed_again", "", ""),
    "inquired": ("penstock_inquiries", "", ""),
    "unknown": ("penstock_unknown_answers", "", ""),
    "overdue": ("penstock_requests_past_deadline", "", ""),
    "inbox_faults": ("penstock_alarms", "kind", "word_not_understood"),
}

# vLLM's name -> the same in Penstock. Histograms are not repeated: use these recording names.
VLLM_NAMES = {
    "vllm:num_requests_running": "sum of penstock_worker_running",
    "vllm:num_requests_waiting": "sum of penstock_worker_waiting",
    "vllm:kv_cache_usage_perc": "held pages / all pages, over all workers (0 to 1)",
    "vllm:prompt_tokens": "penstock_prompt_tokens",
    "vllm:generation_tokens": "penstock_generated_tokens",
    "vllm:prompt_tokens_cached": "penstock_cached_tokens",
    "vllm:time_to_first_token_seconds": "penstock_time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds": "penstock_inter_token_latency_seconds",
    "vllm:e2e_request_latency_seconds": "penstock_request_duration_seconds",
}


class WorkerView(Protocol):
    """What the page reads of a worker (fleet.Worker has it)."""

    @property
    def peer(self) -> Peer: ...
    @property
    def role(self) -> Role: ...
    @property
    def model(self) -> str: ...
    @property
    def state(self) -> WorkerState: ...
    @property
    def counters(self) -> Mapping[str, float]: ...
    @property
    def stuck(self) -> str: ...
    @property
    def transport(self) -> str: ...


class RouterCollector(Collector):
    """Turns the numbers into metric families, once per scrape."""

    def __init__(
        self,
        counters: Counters,
        workers: Callable[[], Iterable[WorkerView]],
        flow: Callable[[], Mapping[str, float]],
        models: Mapping[str, Counters],
    ):
        self._general = counters
        self._workers = workers
        self._flow = flow
        self._models = models

    def collect(self) -> Iterable[Metric]:
        workers = list(self._workers())
        # One model counts into the general numbers themselves.
        parts = [one for one in self._models.values() if one is not self._general]
        counters = total([self._general, *parts]) if parts else self._general
        yield from _requests(counters)
        yield from _times(counters)
        yield from _flow_families(self._flow())
        yield from _worker_families(workers)
        yield from _vllm_families(self._models, workers)


def _requests(counters: Counters) -> Iterable[Metric]:
    answered = CounterMetricFamily(
        "penstock_http_requests", "Requests by endpoint and status", labels=["path", "status"]
    )
    for (path, status), count in sorted(counters.answered.items()):
        answered.add_metric([path, str(status)], count)
    yield answered
    finished = CounterMetricFamily(
        "penstock_choices", "Answers by how they ended", labels=["finish"]
    )
    for reason, count in sorted(counters.finished.items()):
        finished.add_metric([reason], count)
    yield finished
    for name, text, value in (
        ("prompt_tokens", "Prompt tokens taken", counters.prompt_tokens),
        ("cached_tokens", "Of those, found in a prefix cache", counters.cached_tokens),
        ("generated_tokens", "Tokens drawn", counters.generated_tokens),
    ):
        yield CounterMetricFamily(f"penstock_{name}", text, value=value)
    for name, text, value in (
        ("requests_running", "Requests being answered", counters.running),
        ("requests_tokenising", "Requests in the tokenizer's threads", counters.tokenising),
        ("loop_longest_gap_seconds", "Longest hold-up of the loop", counters.longest_gap),
    ):
        yield GaugeMetricFamily(f"penstock_{name}", text, value=value)


def _times(counters: Counters) -> Iterable[Metric]:
    for name, text, histogram in (
        ("time_to_first_token_seconds", "Request to first token", counters.first_token),
        ("inter_token_latency_seconds", "Token to token", counters.between_tokens),
        ("request_duration_seconds", "Request to last byte", counters.whole_request),
        ("tokenise_seconds", "Template and tokenizer", counters.tokenise),
        ("prompt_length_tokens", "Prompt tokens per prompt", counters.prompt_length),
        ("answer_length_tokens", "Tokens drawn per choice", counters.answer_length),
        ("loop_gap_seconds", "Lateness of the loop's timer", counters.loop_gap),
    ):
        yield _histogram(f"penstock_{name}", text, histogram)
    stages = HistogramMetricFamily(
        "penstock_stage_seconds", "Where the time of a request went", labels=["stage"]
    )
    for stage in STAGES:
        histogram: Histogram = getattr(counters, stage)
        stages.add_metric([stage], histogram.cumulative(), histogram.total)
    yield stages


def _vllm_families(models: Mapping[str, Counters], workers: list[WorkerView]) -> Iterable[Metric]:
    families: dict[str, Metric] = {}
    for model, counters in models.items():
        for kind, name, value in _vllm_numbers(counters, [w for w in workers if w.model == model]):
            known = f"vllm:{name}"
            family = families.setdefault(name, kind(known, VLLM_NAMES[known], labels=LABELS))
            values = value if isinstance(value, tuple) else (value,)
            family.add_metric([model], *values)  # pyright: ignore[reportAttributeAccessIssue]
    return families.values()


def _vllm_numbers(counters: Counters, workers: list[WorkerView]) -> Iterable[tuple[Any, str, Any]]:
    """One model's: the kind of metric, vLLM's name, the value (of a histogram: buckets, sum)."""
    states = [worker.state for worker in workers]
    held = sum(one.held_pages for one in states)
    pages = held + sum(one.free_pages + one.quarantined_pages for one in states)
    yield GaugeMetricFamily, "num_requests_running", sum(one.running for one in states)
    yield GaugeMetricFamily, "num_requests_waiting", sum(one.waiting for one in states)
    yield GaugeMetricFamily, "kv_cache_usage_perc", held / pages if pages else 0.0
    yield CounterMetricFamily, "prompt_tokens", counters.prompt_tokens
    yield CounterMetricFamily, "generation_tokens", counters.generated_tokens
    yield CounterMetricFamily, "prompt_tokens_cached", counters.cached_tokens
    for name, histogram in (
        ("time_to_first_token_seconds", counters.first_token),
        ("inter_token_latency_seconds", counters.between_tokens),
        ("e2e_request_latency_seconds", counters.whole_request),
    ):
        yield HistogramMetricFamily, name, (histogram.cumulative(), histogram.total)


LABELS = ["model_name"]


def _histogram(name: str, text: str, histogram: Histogram) -> HistogramMetricFamily:
    return HistogramMetricFamily(
        name, text, buckets=histogram.cumulative(), sum_value=histogram.total
    )


def _flow_families(numbers: Mapping[str, float]) -> Iterable[Metric]:
    families: dict[str, CounterMetricFamily] = {}
    for name, value in numbers.items():
        metric, label, labelled = FLOW_NAMES.get(name) or _flow_name(name)
        if metric not in families:
            text = HELP.get(metric, metric.removeprefix("penstock_").replace("_", " "))
            families[metric] = CounterMetricFamily(metric, text, labels=[label] if label else [])
        families[metric].add_metric([labelled] if label else [], value)
    return families.values()


def _flow_name(name: str) -> tuple[str, str, str]:
    """Of a number that has none of its own."""
    if name.startswith(MAILBOX):
        return "penstock_router_mailbox", "event", name.removeprefix(MAILBOX)
    return f"penstock_flow_{name}", "", ""


def _worker_families(workers: list[WorkerView]) -> Iterable[Metric]:
    """Every field of WorkerState and every counter a worker names, labelled by worker and role."""
    labels = ["worker", "role"]
    families: dict[str, Metric] = {}
    transports = GaugeMetricFamily(
        "penstock_worker_transport_info",
        "Always 1; what its plane really uses, as a label",
        labels=[*labels, "transport"],
    )
    models = GaugeMetricFamily(
        "penstock_worker_model_info",
        "Always 1; the model it serves, as a label",
        labels=[*labels, "model_name"],
    )
    for worker in workers:
        of = [worker.peer.name, worker.role]
        numbers: dict[str, float] = {
            field: getattr(worker.state, field) for field in WorkerState.__struct_fields__
        }
        numbers["stuck"] = 1.0 if worker.stuck else 0.0
        transports.add_metric([*of, worker.transport], 1)
        models.add_metric([*of, worker.model], 1)
        for name, value in numbers.items():
            metric = f"penstock_worker_{name}"
            if metric not in families:
                families[metric] = GaugeMetricFamily(
                    metric, f"{name.replace('_', ' ')}, as of its last word", labels=labels
                )
            families[metric].add_metric(of, value)  # pyright: ignore[reportAttributeAccessIssue]
        for name, value in worker.counters.items():
            metric = f"penstock_worker_counter_{_plain(name)}"
            if metric not in families:
                families[metric] = CounterMetricFamily(metric, name, labels=labels)
            families[metric].add_metric(of, value)  # pyright: ignore[reportAttributeAccessIssue]
    return [*families.values(), transports, models]


def _plain(name: str) -> str:
    """A worker's counter name as a metric name."""
    return "".join(one if one.isalnum() and one.isascii() else "_" for one in name)


class MetricsPage:
    """The whole page as bytes."""

    def __init__(
        self,
        counters: Counters,
        workers: Callable[[], Iterable[WorkerView]],
        flow: Callable[[], Mapping[str, float]],
        models: Mapping[str, Counters],
    ):
        """`models`: each model's own numbers; of a single one, `counters` themselves."""
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(RouterCollector(counters, workers, flow, models))

    def text(self) -> bytes:
        return generate_latest(self._registry)
