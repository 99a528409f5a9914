"""From settings to a running engine: kernels, weights, pages, thread, and the numeric class."""

import hashlib
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
import torch

from ..kernels.choice import Kernels, choose
from ..kernels.exactness import AttentionShape, MixtureShape, Report, probe
from ..models.blueprint import Attention, Experts, LatentAttention
from ..models.config import ModelConfig, read_config
from ..models.decoder import Decoder
from ..models.fields import ModelError
from ..models.registry import Loaded, load_model
from ..models.shards import Shards
from .paged_memory import PagedMemory, PageLayout, pages_within
from .rank_words import Setup
from .ranks import Ranks
from .runner import Runner
from .thread import EngineThread

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}

# Shares of what is free, when no budget is given. On a CPU the pages are taken from the system
# as they are first written, and other programs live there too.
CPU_SHARE, CPU_MOST = 0.25, 4 << 30
CUDA_SHARE = 0.85


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What a person chooses. 0 = chosen here, and named in what `load_engine` returns."""

    model: Path
    device: str = "cpu"
    dtype: str = "auto"  # auto, bfloat16 or float32
    kernels: str = "auto"  # auto, native or torch
    pages: int = 0
    memory_budget: int = 0  # bytes for pages, where their number is not given
    page_slots: int = 32
    threads: int = 0
    ranks: int = 1
    shards: int = 0  # one per rank
    exchange_seconds: float = 60.0  # a rank that stands still for so long has left its worker


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """A ready engine and what is said about it at start, in /health and in handshakes."""

    engine: EngineThread
    memory: PagedMemory
    config: ModelConfig
    model_digest: str  # Compatibility.model
    numeric_class: str
    dtype: str
    kernels: str  # name and reason
    exactness: str  # what the probe found on this machine
    device: str
    threads: int
    ranks: Ranks | None = None  # that hold the other shards

    def failure(self) -> str:
        """Why the engine answers no step any more; "" while all is well."""
        return "" if self.ranks is None else self.ranks.failure

    def close(self) -> None:
        if self.ranks is not None and self.ranks.failure:
            self.ranks.close()  # its steps would not end before
        self.engine.close()
        if self.ranks is not None:
            self.ranks.close()
        self.memory.close()


def load_engine(
    settings: EngineSettings, progress: Callable[[int, int, str], None] | None = None
) -> LoadedEngine:
    """Blocks while weights load; `progress(bytes done, bytes total)`. Raises ModelError."""
    device = _device(settings.device)
    dtype = _dtype(settings.dtype, read_config(settings.model))
    kernels = choose(device, settings.kernels)
    shards = _shards(settings, device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    ranks = _start_ranks(settings, shards, kernels, dtype) if settings.ranks > 1 else None
    if ranks is not None:
        shards = replace(shards, gather=ranks.group.gather)
    try:
        loaded = load_model(settings.model, kernels, dtype, device, progress, shards)
        piece = Decoder.divided(loaded.config, shards.count)
        found = _probe(piece, kernels, dtype, settings.page_slots, device)
        memory = _memory(settings, loaded.config, dtype, device)
        if ranks is not None:
            ranks.meet(memory, kernels.digest)
    except BaseException:
        if ranks is not None:
            ranks.close()
        raise
    threads = torch.get_num_threads()
    return LoadedEngine(
        engine=EngineThread(Runner(loaded.model, memory.pages_PLCGSH, ranks=ranks), threads),
        memory=memory,
        config=loaded.config,
        model_digest=loaded.digest,
        numeric_class=numeric_class(loaded, kernels, dtype, device, found, shards.count),
        dtype=_name(dtype),
        kernels=f"{kernels.name} ({kernels.why})",
        exactness=found.sentence,
        device=f"{device}, {settings.ranks} ranks" if ranks is not None else str(device),
        threads=threads,
        ranks=ranks,
    )


def _shards(settings: EngineSettings, device: torch.device) -> Shards:
    """How the model is cut, asked before anything is started. Raises ModelError."""
    if settings.ranks > 1 and device.type != "cpu":
        raise ModelError(
            f"ranks {settings.ranks}: several ranks share pages in host memory, and the device is "
            f"{device.type}; ranks 1 works, and device cpu"
        )
    shards = Shards.of_rank(settings.shards or settings.ranks, 0, settings.ranks)
    Decoder.divided(read_config(settings.model), shards.count)
    return shards


def _start_ranks(
    settings: EngineSettings, shards: Shards, kernels: Kernels, dtype: torch.dtype
) -> Ranks:
    return Ranks(
        Setup(
            model=str(settings.model),
            dtype=_name(dtype),
            kernels=kernels.name,
            threads=torch.get_num_threads(),
            page_slots=settings.page_slots,
            rank=0,
            ranks=settings.ranks,
            shards=shards.count,
            meeting="",
            seconds=settings.exchange_seconds,
        )
    )


def _probe(
    config: ModelConfig, kernels: Kernels, dtype: torch.dtype, slots: int, device: torch.device
) -> Report:
    """Ask with this model's own shapes whether rows, and threads, leave bits alone."""
    kinds = tuple(_kind(layer.attention) for layer in config.blueprint.layers)
    plans = (layer.feed_forward for layer in config.blueprint.layers)
    mixtures = tuple(
        MixtureShape(plan.count, config.hidden, plan.size, plan.scoring == "sigmoid")
        for plan in plans
        if isinstance(plan, Experts)
    )
    return probe(kernels, dtype, Decoder.packed(config), kinds, slots, device, mixtures)


def _kind(plan: Attention) -> AttentionShape:
    if isinstance(plan, LatentAttention):
        head = plan.kv_rank + plan.rotary_size
        return AttentionShape(plan.query_heads, 1, head, value_size=plan.kv_rank)
    return AttentionShape(
        plan.query_heads,
        plan.kv_heads,
        plan.head_size,
        window=plan.window,
        sinks=plan.sinks,
        head_norm=plan.head_norm,
    )


def numeric_class(
    loaded: Loaded,
    kernels: Kernels,
    dtype: torch.dtype,
    device: torch.device,
    found: Report,
    shards: int = 1,
) -> str:
    """A digest of all that logits' bits may depend on, and words for people.

    Shards are part of it, for each is a sum by itself; the ranks that hold them are not.
    The page size is not part of it: attention goes by chunks of positions, whatever the pages.
    Threads are part of it only where the probe saw them change bits.
    """
    words = [_name(dtype), kernels.name, f"torch {torch.__version__}", _processor(device)]
    if shards > 1:
        words.append(f"{shards} shards")
    if found.by_threads:
        words.append(f"{found.threads} threads")
    if found.inexact:
        words.append("not row-exact")
    words.append(f"kv {_name(dtype)}")
    exact = [*words, loaded.digest, kernels.digest, _processor_details(device), numpy.__version__]
    digest = hashlib.blake2b("\0".join(exact).encode(), digest_size=6).hexdigest()
    return f"{digest} ({', '.join(words)})"


def _processor(device: torch.device) -> str:
    if device.type == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()}"
    return torch.cuda.get_device_name(device)


def _processor_details(device: torch.device) -> str:
    """oneDNN chooses code by model and features, which torch's capability does not tell apart."""
    if device.type != "cpu":
        return str(torch.cuda.get_device_capability(device))
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    told = ("model name", "flags", "Features", "CPU part", "cache size")
    return "\n".join(line for line in lines if line.startswith(told))


def _device(name: str) -> torch.device:
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ModelError("device cuda was asked for, but torch finds none; cpu would work")
        return torch.device("cuda", device.index or 0)
    if device.type != "cpu":
        raise ModelError(f"device {name} cannot be used; cpu and cuda can")
    return device


def _dtype(name: str, config: ModelConfig) -> torch.dtype:
    """auto: as stored; float16 checkpoints run in bfloat16, which kernels exist for."""
    if name == "auto":
        name = "float32" if config.dtype == "float32" else "bfloat16"
    if name not in DTYPES:
        raise ModelError(f"dtype {name} cannot be used; auto, {' and '.join(DTYPES)} can")
    return DTYPES[name]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _memory(
    settings: EngineSettings, config: ModelConfig, dtype: torch.dtype, device: torch.device
) -> PagedMemory:
    layout = PageLayout.of(config.blueprint, settings.page_slots, dtype)
    pages = settings.pages
    if not pages:
        budget = settings.memory_budget or _default_budget(device)
        pages = pages_within(budget, layout)
    if pages < 1:
        raise ModelError(
            f"the memory budget holds no page; one page takes {layout.page_bytes} bytes"
        )
    return PagedMemory(layout, pages, device)


def _default_budget(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * CUDA_SHARE)
    return min(int(_available_memory() * CPU_SHARE), CPU_MOST)


def _available_memory() -> int:
    """What the system, or a container's limit, leaves."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    available *= 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        return max(0, min(available, limit - int((group / "memory.current").read_text())))
    except (OSError, ValueError):  # no such file, or "max"
        return available
