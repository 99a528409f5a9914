"""From a model folder to a running engine, and what is said about it."""

import json
import select
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.engine.load import EngineSettings, load_engine
from penstock.engine.step import Slice, Step, StepResult
from penstock.engine.thread import EngineThread
from penstock.models.fields import ModelError
from support.small_model import make_sequence, write_model


def result_of(engine: EngineThread, step: Step) -> StepResult:
    engine.start(step)
    assert select.select([engine.fileno()], [], [], 60)[0]
    result = engine.finished()
    assert result is not None
    return result


def test_a_loaded_engine_answers(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    settings = EngineSettings(write_model(tmp_path), pages=16, page_slots=8, threads=1)
    loaded = load_engine(settings, lambda *at: seen.append(at))
    assert seen[-1][0] == seen[-1][1] > 0
    assert loaded.config.vocabulary == 128 and loaded.dtype == "float32"
    assert loaded.memory.description.page_count == 16
    assert loaded.kernels.startswith(("native (", "torch ("))
    assert loaded.threads == 1 and loaded.device == "cpu" and loaded.exactness
    assert "float32" in loaded.numeric_class and torch.__version__ in loaded.numeric_class
    sequence = make_sequence([1, 2, 3], pages=[4], temperature=0.0)
    result = result_of(loaded.engine, Step((Slice(sequence, 0, 3, (0,)),)))
    assert not result.error and len(result.drawn[0].token_ids) == 1
    outside = make_sequence([1, 2, 3], pages=[400])
    result = result_of(loaded.engine, Step((Slice(outside, 0, 3, (0,)),)))
    assert "page id" in result.error
    assert result_of(loaded.engine, Step((Slice(sequence, 0, 3),))).error == ""
    loaded.close()


def test_numeric_class_and_digest(tmp_path: Path) -> None:
    folder = write_model(tmp_path)

    def identity(**changes: Any) -> tuple[str, str]:
        chosen: dict[str, Any] = {"pages": 4, "threads": 1} | changes
        loaded = load_engine(EngineSettings(folder, **chosen))
        loaded.close()
        return loaded.numeric_class, loaded.model_digest

    numeric_class, digest = identity()
    assert identity() == (numeric_class, digest)
    assert identity(page_slots=16, pages=9) == (numeric_class, digest)
    other, same = identity(dtype="bfloat16")
    assert other != numeric_class and same == digest
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 20000.0}))
    other, different = identity()
    assert other != numeric_class and different != digest


def test_pages_follow_the_budget(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    loaded = load_engine(EngineSettings(folder, memory_budget=1 << 20, threads=1))
    told = loaded.memory.description
    assert told.page_count * (told.page_bytes + 8) <= 1 << 20
    assert (told.page_count + 2) * told.page_bytes > 1 << 20
    loaded.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "float16"}, "dtype float16"),
        ({"device": "meta"}, "device meta"),
        ({"memory_budget": 100}, "holds no page"),
        ({"kernels": "fast"}, "kernels 'fast'"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    settings = EngineSettings(write_model(tmp_path), threads=1, **changes)
    with pytest.raises((ModelError, ValueError), match=words):
        load_engine(settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cuda was asked for"):
        load_engine(EngineSettings(write_model(tmp_path), device="cuda"))
