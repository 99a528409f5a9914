"""F8 on a whole cluster: every word between router and workers passes bad weather."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from penstock.bench.breaking.proxy import TOLD, Proxy, Weather
from support.http_client import ask
from support.serving import free_port, serving

REQUESTS = 24
STORM = Weather(lost=0.02, doubled=0.05, delayed=0.2, longest_delay=0.05)


@pytest.fixture
def cluster(tmp_path):
    """A cluster whose processes reach each other through a proxy only, and that proxy."""
    ports = {name: free_port() for name in ("control", "prefill", "decode")}
    file = tmp_path / "cluster.toml"
    file.write_text(
        f"""
        [router]
        control = "tcp://{TOLD}:{ports["control"]}"
        control_bind = "127.0.0.1"
        local_prefill_tokens = 0
        [worker]
        pages = 800
        advertise = "{TOLD}"
        lease_seconds = 2.0
        [[prefill]]
        name = "p"
        port = {ports["prefill"]}
        [[decode]]
        name = "d"
        port = {ports["decode"]}
        """
    )
    endpoints = [f"tcp://{TOLD}:{port}" for port in ports.values()]
    proxy = Proxy(endpoints, Weather(), seed=3)
    try:
        with serving("--config", str(file)) as running:
            yield running, proxy
            proxy.weather = Weather()
    finally:
        proxy.close()


def test_f8_lost_words_between_router_and_workers_cost_no_answer(cluster):
    running, proxy = cluster

    def answer(number: int) -> tuple[int, str]:
        body = {"prompt": f"{number}: def total(values):\n", "seed": number, "max_tokens": 24}
        status, answer = ask(running.url, "/v1/completions", body, timeout=120)
        return status, answer["choices"][0]["text"] if status == 200 else str(answer)

    def answers() -> list[tuple[int, str]]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(answer, range(REQUESTS)))

    calm = answers()
    assert {status for status, _ in calm} == {200}, calm
    assert proxy.counts["lost"] == 0 and proxy.counts["seen"] > 0
    proxy.weather = STORM
    assert answers() == calm
    assert proxy.counts["lost"] > 0 and proxy.counts["doubled"] > 0
    proxy.weather = Weather()
    running.wait_idle()
    assert running.total("penstock_alarms_total") == 0
