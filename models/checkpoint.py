"""Weights of a model folder: safetensors files, checked before use.

Knows names, shapes and bytes; knows no architecture. Nothing of the folder is executed: the only
formats read are JSON and safetensors. weights.py reads the tensors.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import safetensors

from .fields import Fields, ModelError, read_json
from .formats import FLOATING, Plain, Shape, Stored, find_weights
from .quantization import read_quantization
from .reading import Files

# Weights up to this size enter the digest whole; of larger ones, every tensor gives its ends.
DIGEST_BYTES = 256 << 20
SHORTEST_SAMPLE = 4096

# Tensors that old checkpoints carry and nobody reads: they are computed from config.json.
COMPUTED = ("rotary_emb.inv_freq",)


class Checkpoint:
    """The tensors of one folder by name: as they are stored, and as the weights they mean."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = _files(folder)
        self.headers: dict[Path, bytearray] = {}
        self.tensors: dict[str, Stored] = {}
        self.files = Files()
        for file in self.paths:
            self._read_header(file)
        config = folder / "config.json"
        self.weights = find_weights(
            self.tensors, read_quantization(Fields(config, read_json(config)))
        )

    def _read_header(self, file: Path) -> None:
        # safetensors itself checks the header (sizes, overlaps, bounds) before we trust it.
        try:
            with safetensors.safe_open(str(file), framework="pt"):
                pass
            self.files.open(file)
        except (safetensors.SafetensorError, OSError) as error:
            raise ModelError(f"{file} cannot be read: {error}") from None
        length = int.from_bytes(self.files.bytes(file, 0, 8), "little")
        header = self.files.bytes(file, 8, length)
        self.headers[file] = header
        for name, entry in json.loads(header).items():
            if name == "__metadata__":
                continue
            if name in self.tensors:
                raise ModelError(f"{file}: {name} is in {self.tensors[name].file.name} already")
            first, last = (8 + length + offset for offset in entry["data_offsets"])
            shape = tuple(entry["shape"])
            self.tensors[name] = Stored(file, entry["dtype"], shape, first, last)

    @property
    def total_bytes(self) -> int:
        return sum(stored.stop - stored.start for stored in self.tensors.values())

    def check(self, wanted: Mapping[str, Shape], ignored: tuple[str, ...] = ()) -> None:
        """Every wanted weight is there in its shape, and none besides but the ignored ones.

        `ignored` are ends of names or, where their last character is ".", beginnings.
        """
        ends = COMPUTED + tuple(one for one in ignored if not one.endswith("."))
        beginnings = tuple(one for one in ignored if one.endswith("."))
        weights = self.weights
        problems = {
            "missing": [name for name in wanted if name not in weights],
            "unexpected": [
                name
                for name in weights
                if name not in wanted
                and not name.endswith(ends)
                and not name.startswith(beginnings)
            ],
            "mis-shaped": [
                f"{name} is {list(weights[name].shape)} but config.json means {list(shape)}"
                for name, shape in wanted.items()
                if name in weights and weights[name].shape != shape
            ],
            "not floating point": [
                f"{name} is {weight.stored.dtype}"
                for name in wanted
                if isinstance(weight := weights.get(name), Plain)
                and weight.stored.dtype not in FLOATING
            ],
        }
        if found := [f"{what}: {_listed(names)}" for what, names in problems.items() if names]:
            raise ModelError(f"{self.folder}: weights do not fit config.json; {'; '.join(found)}")

    def digest(self) -> str:
        """Names config and weights: equal files give equal digests on every host.

        BLAKE2b over config.json, each file's safetensors header and the data: whole up to 256 MiB;
        above, of each tensor equal shares from its two ends (256 MiB in all, at least 4 KiB each),
        so a file that differs only in the middle of one tensor is not told apart.
        """
        digest = hashlib.blake2b(digest_size=16)
        digest.update((self.folder / "config.json").read_bytes())
        for file in self.paths:
            digest.update(self.headers[file])
            for name in sorted(name for name, at in self.tensors.items() if at.file == file):
                for start, stop in self._sampled(self.tensors[name]):
                    digest.update(self.files.bytes(file, start, stop - start))
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


def _listed(names: list[str]) -> str:
    """The first few, for an error that a person reads."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
