"""How fast weights load beside how fast their files can be read, and in how much memory.

    penstock bench loading [--gib 2] [--rounds 3] [--folder FOLDER] [--json FILE]

A Llama of random bf16 weights is written shard by shard (a folder that holds one is used as it is).
Every measurement is a process of its own; methods take turns within a round, first with the files
dropped from the system's cache, then with them in it. Seconds leave out Python's own start.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..models.config import read_config
from ..models.decoder import Decoder
from .loading_once import METHODS
from .report import Result, Table, median, result_file, scaled

GIB, GB = 1 << 30, 1e9
SHARD = GIB // 2
LAYER = {"hidden_size": 2048, "intermediate_size": 8192, "vocab_size": 32000}
HEADS = {"num_attention_heads": 32, "num_key_value_heads": 8}
SAMPLES = 64  # pages asked whether they are cached

Round = dict[str, Any]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="penstock bench loading", description=__doc__)
    parser.add_argument("--gib", type=float, default=2.0, help="size of the checkpoint")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="torch's; 0: as many as it takes")
    parser.add_argument("--methods", default=",".join(METHODS), help="separated by , without space")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is, or shall be kept")
    parser.add_argument("--json", type=result_file)
    options = parser.parse_args(arguments)
    result = Result("loading", {name: str(value) for name, value in vars(options).items()})
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "config.json").exists():
            write(folder, int(options.gib * GIB))
        size = sum(file.stat().st_size for file in files_of(folder))
        for number in range(options.rounds):
            for one in turns(folder, chosen(options.methods), options.threads):
                result.rounds.append(one | {"round": number, "size": size})
    result.finish([table(result.rounds)], options.json)
    return 0


def chosen(names: str) -> list[str]:
    """A method's name may hold a comma itself."""
    return [name for name in METHODS if f",{name}," in f",{names},"]


def write(folder: Path, size: int) -> None:
    """A checkpoint of about this many bytes; weights are random bits of sensible size."""
    folder.mkdir(parents=True, exist_ok=True)
    hidden, wide = LAYER["hidden_size"], LAYER["intermediate_size"]
    layer = 2 * (2.5 * hidden * hidden + 3 * hidden * wide)
    layers = max(1, round((size - 4 * hidden * LAYER["vocab_size"]) / layer))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "dtype": "bfloat16",
        "num_hidden_layers": layers,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config | LAYER | HEADS))
    shapes = Decoder.shapes(read_config(folder))
    placed: dict[str, str] = {}
    for number, names in enumerate(shards(shapes)):
        file = folder / f"model-{number:05}.safetensors"
        tensors = {name: torch.empty(shapes[name], dtype=torch.bfloat16) for name in names}
        for tensor in tensors.values():
            tensor.normal_(0.0, 0.02)
        save_file(tensors, file)
        placed |= dict.fromkeys(names, file.name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": placed}))


def shards(shapes: dict[str, tuple[int, ...]]) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        names.append(name)
        size += 2 * torch.Size(shape).numel()
        if size >= SHARD:
            yield names
            names, size = [], 0
    if names:
        yield names


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def turns(folder: Path, methods: list[str], threads: int) -> Iterator[Round]:
    """Every method cold, then every method warm."""
    for method in methods:
        drop(folder)
        cached = share_cached(folder)
        yield measure(method, folder, threads) | {"cache": "cold", "cached": cached}
    measure("read", folder, threads)
    for method in methods:
        yield measure(method, folder, threads) | {"cache": "warm", "cached": share_cached(folder)}


def measure(method: str, folder: Path, threads: int) -> Round:
    module = f"{__package__}.loading_once"
    command = [sys.executable, "-m", module, method, str(folder), str(threads)]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {"method": method, **json.loads(ran.stdout)}


def drop(folder: Path) -> None:
    """Out of the system's cache, where the system does so when it is asked."""
    for file in files_of(folder):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def share_cached(folder: Path) -> float:
    """Of some pages of the files: how many can be had without a disk. Asking reads nothing."""
    found = 0
    files = files_of(folder)
    buffer = bytearray(1)
    for file in files:
        descriptor, size = os.open(file, os.O_RDONLY), file.stat().st_size
        for number in range(SAMPLES):
            try:
                at = number * (size - 1) // SAMPLES
                found += os.preadv(descriptor, [buffer], at, os.RWF_NOWAIT)
            except BlockingIOError:
                pass
        os.close(descriptor)
    return found / (SAMPLES * len(files))


def table(rounds: list[Round]) -> Table:
    columns = ["cache", "method", "rounds", "s", "GB/s", "of read", "of read, kept", "CPU s"]
    columns += ["packing CPU s", "digest s", "memory at most", "at the end", "cached before"]
    groups: dict[tuple[str, str], list[Round]] = {}
    for one in rounds:
        groups.setdefault((one["cache"], one["method"]), []).append(one)
    seconds = {group: median(one["seconds"] for one in found) for group, found in groups.items()}
    rows = []
    for (cache, method), found in groups.items():
        size, took = found[0]["size"], seconds[cache, method] or float("nan")
        shares = [
            None if (other := seconds.get((cache, base))) is None else f"{other / took:.0%}"
            for base in ("read", "read, kept")
        ]
        names = ("cpu_seconds", "packing", "digest", "peak", "end", "cached")
        middle = {name: median(one.get(name) for one in found) for name in names}
        rows.append(
            [
                *(cache, method, len(found), took, size / took / GB, *shares),
                *(middle[name] for name in ("cpu_seconds", "packing", "digest")),
                *(scaled(middle[name], 1 / size) for name in ("peak", "end")),
                middle["cached"],
            ]
        )
    notes = [
        "memory: this process's own, beyond what it had before, as a multiple of the files' size.",
        "load: read, pack and digest; tensors: read alone; read, kept: into memory that stays.",
    ]
    return Table(f"Loading {rounds[0]['size'] / GIB:.2f} GiB of bf16", columns, rows, notes)
