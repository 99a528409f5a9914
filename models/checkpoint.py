"""Weights of a model folder: safetensors files, mapped into memory, checked before use.

Knows names, shapes and bytes; knows no architecture. Nothing of the folder is executed: the only
formats read are JSON and safetensors.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from .config import ModelError, read_json

Shape = tuple[int, ...]
Progress = Callable[[int, int], None]  # bytes done, bytes total

# Weights up to this size enter the digest whole; of larger ones, every tensor gives its ends.
DIGEST_BYTES = 256 << 20
SHORTEST_SAMPLE = 4096

# Tensors that old checkpoints carry and nobody reads: they are computed from config.json.
COMPUTED = ("rotary_emb.inv_freq",)


@dataclass(frozen=True, slots=True)
class Stored:
    """Where one tensor lies."""

    file: Path
    shape: Shape
    start: int  # bytes into the file
    stop: int


class Checkpoint:
    """The tensors of one folder by name. `load` gives them one by one, in memory of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = _files(folder)
        self.headers: dict[Path, bytes] = {}
        self.tensors: dict[str, Stored] = {}
        for file in self.files:
            self._read_header(file)

    def _read_header(self, file: Path) -> None:
        # safetensors itself checks the header (sizes, overlaps, bounds) before we trust it.
        try:
            with safetensors.safe_open(str(file), framework="pt"):
                pass
            with open(file, "rb") as opened:
                length = int.from_bytes(opened.read(8), "little")
                header = opened.read(length)
        except (safetensors.SafetensorError, OSError) as error:
            raise ModelError(f"{file} cannot be read: {error}") from None
        self.headers[file] = header
        for name, entry in json.loads(header).items():
            if name == "__metadata__":
                continue
            if name in self.tensors:
                raise ModelError(f"{file}: {name} is in {self.tensors[name].file.name} already")
            first, last = (8 + length + offset for offset in entry["data_offsets"])
            self.tensors[name] = Stored(file, tuple(entry["shape"]), first, last)

    @property
    def total_bytes(self) -> int:
        return sum(stored.stop - stored.start for stored in self.tensors.values())

    def check(self, wanted: Mapping[str, Shape], ignored: tuple[str, ...] = ()) -> None:
        """Every wanted tensor is there in its shape, and none besides but the ignored ones."""
        ignored += COMPUTED
        missing = [name for name in wanted if name not in self.tensors]
        unexpected = [
            name for name in self.tensors if name not in wanted and not name.endswith(ignored)
        ]
        misshaped = [
            f"{name} is {list(self.tensors[name].shape)} but config.json means {list(shape)}"
            for name, shape in wanted.items()
            if name in self.tensors and self.tensors[name].shape != shape
        ]
        problems = [("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshaped)]
        if found := [f"{what}: {_listed(names)}" for what, names in problems if names]:
            raise ModelError(f"{self.folder}: weights do not fit config.json; {'; '.join(found)}")

    def load(
        self,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
    ) -> Callable[[str], Tensor]:
        """A function name -> tensor in this dtype on this device, in memory of its own.

        (A view of the mapped file would change, or kill the process, when the file is replaced.)
        """
        opened: dict[Path, Any] = {}
        total = self.total_bytes
        done = 0

        def take(name: str) -> Tensor:
            nonlocal done
            stored = self.tensors[name]
            if stored.file not in opened:
                opened[stored.file] = safetensors.safe_open(str(stored.file), framework="pt")
            tensor = opened[stored.file].get_tensor(name)
            if not tensor.is_floating_point():
                raise ModelError(f"{stored.file}: {name} is {tensor.dtype}, not floating point")
            own = tensor.to(device=device, dtype=dtype, copy=True)
            done += stored.stop - stored.start
            if progress is not None:
                progress(done, total)
            return own

        return take

    def digest(self) -> str:
        """Names config and weights: equal files give equal digests on every host.

        BLAKE2b over config.json, each file's safetensors header and the data: whole up to 256 MiB;
        above, of each tensor equal shares from its two ends (256 MiB in all, at least 4 KiB each),
        so a file that differs only in the middle of one tensor is not told apart.
        """
        digest = hashlib.blake2b(digest_size=16)
        digest.update((self.folder / "config.json").read_bytes())
        for file in self.files:
            digest.update(self.headers[file])
            with open(file, "rb", buffering=0) as opened:
                for name in sorted(name for name, at in self.tensors.items() if at.file == file):
                    for start, stop in self._sampled(self.tensors[name]):
                        opened.seek(start)
                        digest.update(_read_exactly(opened, stop - start, file))
        return digest.hexdigest()

    def _sampled(self, stored: Stored) -> list[tuple[int, int]]:
        if self.total_bytes <= DIGEST_BYTES:
            return [(stored.start, stored.stop)]
        share = max(SHORTEST_SAMPLE, DIGEST_BYTES // len(self.tensors)) // 2
        if stored.stop - stored.start <= 2 * share:
            return [(stored.start, stored.stop)]
        return [(stored.start, stored.start + share), (stored.stop - share, stored.stop)]


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        placed = read_json(index).get("weight_map")
        if not isinstance(placed, dict) or not placed:
            raise ModelError(f"{index}: weight_map must map tensor names to files")
        names = sorted({str(name) for name in placed.values()})
    else:
        names = ["model.safetensors"]
    if outside := [name for name in names if Path(name).name != name]:
        raise ModelError(f"{index}: files must lie in the model folder: {_listed(outside)}")
    files = [folder / name for name in names]
    if missing := [file.name for file in files if not file.exists()]:
        raise ModelError(
            f"{folder}: {_listed(missing)} missing; weights are read from model.safetensors or the "
            "files of model.safetensors.index.json (convert .bin and .pth checkpoints first)"
        )
    return files


def _read_exactly(opened: Any, length: int, file: Path) -> bytes:
    pieces = []
    while length:  # one raw read returns at most 2 GiB
        piece = opened.read(length)
        if not piece:
            raise ModelError(f"{file} is shorter than its header says")
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)


def _listed(names: list[str]) -> str:
    """The first few, for an error that a person reads."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
