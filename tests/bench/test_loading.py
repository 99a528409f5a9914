"""The loading benchmark: one small run of every method, in processes of their own."""

import json
from pathlib import Path

import pytest

from penstock.bench import loading
from penstock.bench.loading_once import METHODS


def test_one_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 1000}
    monkeypatch.setattr(loading, "LAYER", sizes)
    monkeypatch.setattr(loading, "SHARD", 1 << 20)
    file, folder = tmp_path / "loading.json", tmp_path / "model"
    words = ["--gib", "0.005", "--rounds", "1", "--threads", "1"]
    assert loading.main([*words, "--folder", str(folder), "--json", str(file)]) == 0
    assert len(loading.files_of(folder)) > 2
    said = capsys.readouterr().out
    rounds = json.loads(file.read_text())["rounds"]
    assert [one["method"] for one in rounds] == [*METHODS, *METHODS]
    assert [one["cache"] for one in rounds] == ["cold"] * len(METHODS) + ["warm"] * len(METHODS)
    assert all(one["seconds"] > 0 for one in rounds) and all(name in said for name in METHODS)
