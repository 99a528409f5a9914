"""Device to device between two processes: what is published is written, what arrived is seen.

These tests were never run: no GPU was there. They are what to run first on a machine that has one
(`pytest -m gpu tests/gpu`). What they hold to account is engine/device_order.py and the NIXL plane
over pages in device memory.
"""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu.device_holder import LAYOUT, content

from penstock.engine.device_order import DeviceOrder
from penstock.engine.paged_memory import PagedMemory
from penstock.kvtransfer.open import open_plane
from penstock.kvtransfer.plane import PlaneSettings
from support.conformance_answers import alone, among_others
from support.serving import serving

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none"),
]

PAGES = 64
ROUNDS = 200
PATIENCE = 120.0  # seconds; a bound, never a measurement
HOLDER = Path(__file__).with_name("device_holder.py")


class Peer:
    """The holder's process."""

    def __init__(self) -> None:
        words = [sys.executable, str(HOLDER), str(PAGES)]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, do: str, **words: Any) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"do": do, **words}).encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def end(self) -> None:
        if self.process.poll() is None:
            self.ask("exit")
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        assert self.process.wait(PATIENCE) == 0


@pytest.fixture
def peer() -> Iterator[Peer]:
    started = Peer()
    yield started
    started.end()


def test_pages_read_after_publication_hold_what_was_published(peer: Peer) -> None:
    """Two hundred times: rewritten by late kernels, published, read over NIXL into device memory,
    and compared by a kernel of the reader, as its first step would read them."""
    memory = PagedMemory(LAYOUT, PAGES, "cuda:0")
    order = DeviceOrder(memory.device)
    plane = open_plane("nixl", PlaneSettings(memory.description, "reader"))
    plane.add_peer("holder", 1, bytes.fromhex(peer.ask("metadata")["metadata"]))
    chance = random.Random(1)
    for _ in range(ROUNDS):
        remote = chance.sample(range(PAGES), 16)
        local = chance.sample(range(PAGES), 16)
        published = peer.ask("rewrite", pages=remote)["generations"]
        plane.read("holder", remote, local, published)
        end = time.monotonic() + PATIENCE
        while not (ended := plane.progress()):
            assert time.monotonic() < end, "the read did not end"
        assert not ended[0].failed and list(ended[0].generations) == published
        order.arrived()
        wanted = torch.tensor(
            [content(page, one) for page, one in zip(remote, published, strict=True)],
            dtype=LAYOUT.dtype,
            device=memory.device,
        )
        seen = memory.pages_PLCGSH[local].flatten(1)
        assert bool((seen == wanted[:, None]).all())
        order.publish()
    plane.close()
    memory.close()


def test_prefill_and_decode_on_a_device_give_the_answers_of_one_process() -> None:
    """The whole cluster on cuda over nixl, from the prompt to the last token."""
    memory = ["--device", "cuda", "--pages", "2000"]
    with serving("--aggregated", *memory) as cluster:
        expected = alone(cluster.url)
    split = ["--kv-transport", "nixl", "--local-prefill-tokens", "0"]
    with serving(*split, *memory) as cluster:
        assert {one["device"] for one in cluster.health()["workers"]} == {"cuda:0"}
        assert alone(cluster.url) == expected
        assert among_others(cluster.url) == expected
        assert cluster.total("penstock_flow_pulled_bytes_total") > 0
        assert cluster.total("penstock_alarms_total") == 0
        cluster.wait_idle()
