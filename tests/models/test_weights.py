"""Weights come whole, in parts and joined, from several threads, in little more than their size."""

import os
import subprocess
import sys
import threading
from math import prod
from pathlib import Path

import pytest
import torch

from penstock.models.config import read_config
from penstock.models.decoder import Decoder
from penstock.models.fields import ModelError
from penstock.models.memory import LARGE, Arena
from penstock.models.overlap import overlapped
from penstock.models.reading import LONGEST_GAP, Files, Rows
from penstock.models.weights import Weights
from support.small_model import write_model
from support.stored_weights import FP8, dequantised, fp8, write

CUTS = [
    (0, 0, 40),
    (0, 3, 4),
    (1, 0, 70),
    (1, 5, 9),
    (1, 60, 61),
    (2, 0, 30),
    (2, 17, 18),
    (1, 4, 4),
]


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_of_plain_tensors(tmp_path: Path, stored: torch.dtype, dtype: torch.dtype) -> None:
    whole = torch.randn(40, 70, 30).to(stored)
    weights = Weights(write(tmp_path, {"w": whole, "s": torch.tensor(3.0)}), dtype)
    assert torch.equal(weights.tensor("w"), whole.to(dtype))
    assert weights.tensor("s") == 3.0 and weights.tensor("s").shape == ()
    for dimension, start, stop in CUTS:
        part = weights.part("w", dimension, start, stop)
        assert part.dtype == dtype and part.is_contiguous()
        assert torch.equal(part, whole.narrow(dimension, start, stop - start).to(dtype))
    exact = weights.part("w", 0, 1, 2, torch.float64)
    assert torch.equal(exact, whole[1:2].double())
    with pytest.raises(ValueError, match="3 to 41 is not within"):
        weights.part("w", 0, 3, 41)


def test_large_tensors_are_converted_piece_by_piece(tmp_path: Path) -> None:
    whole = torch.randn(1000, 3000)
    weights = Weights(write(tmp_path, {"w": whole}), torch.bfloat16)
    assert torch.equal(weights.tensor("w"), whole.bfloat16())
    assert torch.equal(weights.part("w", 1, 100, 2900), whole[:, 100:2900].bfloat16())


@pytest.mark.parametrize("block", [(128, 128), (64, 32)])
def test_parts_cut_blocks(tmp_path: Path, block: tuple[int, int]) -> None:
    codes = fp8(700, 900)
    scales = torch.rand(-(-700 // block[0]), -(-900 // block[1]))
    config = FP8 | {"weight_block_size": list(block)}
    checkpoint = write(tmp_path, {"w": codes, "w_scale_inv": scales}, config)
    weights = Weights(checkpoint, torch.bfloat16)
    expected = dequantised(codes, scales, block).bfloat16()
    for start, stop in ((0, 350), (350, 700), (1, 2), (127, 129), (128, 700), (640, 699)):
        assert torch.equal(weights.part("w", 0, start, stop), expected[start:stop])
        assert torch.equal(weights.part("w", 1, start, stop), expected[:, start:stop])


def test_parts_of_stacked_fp8(tmp_path: Path) -> None:
    codes, scales = fp8(130, 140, 2, 3), torch.rand(2, 3, 2, 2)
    weights = Weights(write(tmp_path, {"w": codes, "w_scale_inv": scales}, FP8), torch.float32)
    expected = dequantised(codes, scales, (128, 128))
    assert torch.equal(weights.tensor("w"), expected)
    for dimension, start, stop in ((0, 1, 2), (1, 1, 3), (2, 100, 130), (3, 3, 139)):
        part = weights.part("w", dimension, start, stop)
        assert torch.equal(part, expected.narrow(dimension, start, stop - start))


def test_joined(tmp_path: Path) -> None:
    query, key = torch.randn(600, 800), torch.randn(300, 800)
    codes, scales = fp8(300, 800), torch.rand(3, 7)
    stored = {"q": query, "k": key, "v": codes, "v_scale_inv": scales}
    weights = Weights(write(tmp_path, stored, FP8), torch.float32)
    values = dequantised(codes, scales, (128, 128))
    assert torch.equal(weights.joined(["q", "k", "v"]), torch.cat((query, key, values)))
    assert torch.equal(weights.joined(["k"]), key)


def test_only_the_bytes_of_a_part_are_read(tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    name = "model.layers.3.mlp.up_proj.weight"
    checkpoint = write(tmp_path, {name: torch.randn(64, 512), "lm_head.weight": torch.randn(8)})
    weights = Weights(checkpoint, torch.float32, progress=lambda *at: told.append(at))
    weights.part(name, 0, 16, 32)
    assert told == [(16 * 512 * 4, 16 * 512 * 4 + 32, "model.layers.3")]
    weights.part(name, 1, 0, 128)
    weights.tensor("lm_head.weight")
    total = 16 * 512 * 4 + 64 * 128 * 4 + 32
    assert told[-1] == (total, total, "lm_head")


def test_progress_counts_what_is_wanted(tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    checkpoint = write(tmp_path, {"a": torch.randn(4), "b": torch.randn(400)})
    weights = Weights(checkpoint, torch.float32, "cpu", lambda *at: told.append(at), ["a"])
    weights.tensor("a")
    assert told == [(16, 16, "a")]


@pytest.mark.parametrize("gap", [0, 8, LONGEST_GAP, LONGEST_GAP + 1])
def test_rows_with_gaps(tmp_path: Path, gap: int) -> None:
    content = os.urandom(100_000)
    path = tmp_path / "file"
    path.write_bytes(content)
    files = Files()
    files.open(path)
    into = bytearray(5 * 100)
    files.read(Rows(path, 7, 100 + gap, 100, 5), memoryview(into))
    starts = [7 + number * (100 + gap) for number in range(5)]
    assert bytes(into) == b"".join(content[start : start + 100] for start in starts)
    # The last row ends the file: the gap after it is not there.
    files.read(Rows(path, 100_000 - 100 - 100 - gap, 100 + gap, 100, 2), memoryview(into)[:200])
    assert bytes(into[100:200]) == content[-100:]


def test_a_file_that_shrank_is_an_error(tmp_path: Path) -> None:
    checkpoint = write(tmp_path, {"w": torch.randn(64, 64)})
    os.truncate(tmp_path / "model.safetensors", 1000)
    with pytest.raises(ModelError, match=r"model\.safetensors is shorter than its header says"):
        Weights(checkpoint, torch.float32).tensor("w")


def test_a_replaced_file_stays_the_one_that_was_checked(tmp_path: Path) -> None:
    whole = torch.randn(64, 64)
    checkpoint = write(tmp_path, {"w": whole})
    (tmp_path / "model.safetensors").unlink()
    write(tmp_path, {"w": torch.zeros(64, 64)})
    assert torch.equal(Weights(checkpoint, torch.float32).tensor("w"), whole)


def test_dropped_memory_is_used_again() -> None:
    arena = Arena()
    first = arena.empty((4, LARGE), torch.float32)
    assert first.is_contiguous() and not first.requires_grad
    at, view = first.data_ptr(), first[0, :10]
    del first
    other = arena.empty((LARGE,), torch.float32)
    assert not at <= other.data_ptr() < at + (16 << 20)  # a view still holds it
    del view
    parts = [arena.empty((count, LARGE), torch.bfloat16) for count in (1, 5, 2)]
    assert [part.data_ptr() - at for part in parts] == [0, 2 << 20, 12 << 20]
    parts = [part.fill_(number) for number, part in enumerate(parts)]
    assert [part.float().mean() for part in parts] == [0, 1, 2]
    while parts:  # in any order, they are one piece again
        parts.pop(len(parts) // 2)
    assert arena.kept == 16 << 20
    assert arena.empty((16 << 20,), torch.uint8).data_ptr() == at
    assert arena.empty((3,), torch.float32).shape == (3,)


def test_an_arena_keeps_little() -> None:
    arena = Arena(5 << 20)
    many = [arena.empty((count << 20,), torch.uint8) for count in (3, 1, 4, 2)]
    many.clear()
    assert arena.kept == 4 << 20  # the largest


def test_tensors_outlive_their_arena() -> None:
    arena = Arena()
    whole = arena.empty((4 << 20,), torch.uint8)
    del whole
    first, second = (arena.empty((2 << 20,), torch.uint8).fill_(1) for _ in range(2))
    del second  # waits in the arena, beside what is in use
    del arena
    assert int(first.sum()) == 2 << 20


def test_overlapped_keeps_order_and_tells_errors() -> None:
    second = threading.Event()

    def build(at: int) -> tuple[int, bool]:
        if at == 0:
            assert second.wait(60)  # two are built at once
        second.set()
        return at, torch.is_inference_mode_enabled()

    with torch.inference_mode():
        assert overlapped(build, 5) == [(at, True) for at in range(5)]

    def broken(at: int) -> int:
        if at == 2:
            raise ModelError("no such tensor")
        return at

    with pytest.raises(ModelError, match="no such tensor"):
        overlapped(broken, 50)


def test_threads_share_weights(tmp_path: Path) -> None:
    stored = {}
    for at in range(6):
        stored |= {f"{at}.w": fp8(300, 500), f"{at}.w_scale_inv": torch.rand(3, 4)}
        stored[f"{at}.plain"] = torch.randn(700, 900)
    weights = Weights(write(tmp_path, stored, FP8), torch.bfloat16)
    found = overlapped(lambda at: (weights.tensor(f"{at}.w"), weights.tensor(f"{at}.plain")), 6)
    for at, (quantised, plain) in enumerate(found):
        codes, scales = stored[f"{at}.w"], stored[f"{at}.w_scale_inv"]
        assert torch.equal(quantised, dequantised(codes, scales, (128, 128)).bfloat16())
        assert torch.equal(plain, stored[f"{at}.plain"].bfloat16())


PEAK = """
import sys
from pathlib import Path
import torch
from penstock.kernels.choice import choose
from penstock.models.registry import load_model

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))

torch.set_num_threads(1)
kernels, dtype = choose("cpu", "auto"), getattr(torch, sys.argv[2])
torch.nn.functional.linear(torch.randn(9, 64, dtype=dtype), torch.randn(64, 64, dtype=dtype))
Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
before = resident("VmRSS")
loaded = load_model(Path(sys.argv[1]), kernels, dtype)
print(resident("VmHWM") - before, resident("VmRSS") - before)
"""


LARGE_MODEL = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
}


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
@pytest.mark.parametrize(("stored", "dtype"), [("bfloat16", "bfloat16"), ("bfloat16", "float32")])
def test_loading_needs_little_more_than_the_weights(
    tmp_path: Path, stored: str, dtype: str
) -> None:
    """Read to where they stay, converted, or packed: never two copies of more than two layers."""
    write_model(tmp_path, stored, **LARGE_MODEL)
    config = read_config(tmp_path)
    size = sum(prod(shape) for shape in Decoder.shapes(config).values())
    size *= getattr(torch, dtype).itemsize
    program = [sys.executable, "-c", PEAK, str(tmp_path), dtype]
    ran = subprocess.run(program, check=True, capture_output=True, text=True)
    peak, after = map(int, ran.stdout.split())
    print(f"{size >> 20} MiB of weights: at most {peak >> 20}, at the end {after >> 20}")
    assert size <= after <= 1.15 * size and peak <= 1.3 * size
