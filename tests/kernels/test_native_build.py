"""Building the C files: cached, atomic, refused with a sentence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.kernels import choice, native


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    native.load.cache_clear()
    yield tmp_path / "cache"
    native.load.cache_clear()


def test_without_a_compiler_torch_serves_and_says_why(cache, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    kernels = choice.choose("cpu")
    assert kernels.name == "torch" and "no C compiler" in kernels.why
    with pytest.raises(native.NativeUnavailable, match="asked for, but no C compiler"):
        choice.choose("cpu", "native")


def test_a_compiler_that_fails_is_quoted(cache, monkeypatch):
    monkeypatch.setenv("CC", "false")
    assert "refuses our flags" in choice.choose("cpu").why


def test_several_processes_build_at_once(native_kernels, cache):
    program = "from penstock.kernels.choice import choose; print(choose('cpu', 'native').digest)"
    runs = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = {run.communicate()[0] for run in runs}
    assert answers == {f"{native_kernels.digest}\n"}
    assert len(list(cache.iterdir())) == 1


def test_a_cache_that_cannot_be_made(cache, monkeypatch):
    monkeypatch.setenv("PENSTOCK_CACHE", os.devnull + "/cache")
    assert "no cache folder" in choice.choose("cpu").why


def test_the_signatures_are_those_of_the_sources():
    text = "".join(file.read_text() for file in Path(native.FOLDER).glob("*.c"))
    for name, letters in native.SIGNATURES.items():
        parameters = text.split(f"int64_t {name}(")[1].split(")")[0].split(",")
        kinds = ["p" if "*" in p else "f" if "float" in p else "i" for p in parameters]
        assert "".join(kinds) == letters
