"""Every family's logits and greedy tokens equal transformers', on every way a token is computed."""

import importlib
import re
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penstock.bench import parity
from penstock.bench.reference.families import FAMILIES, family, write
from penstock.bench.reference.measure import ANSWER, PARTS, Expected, Parity, expected, measure
from penstock.kernels.choice import choose
from penstock.models.config import FAMILIES as SERVED
from penstock.models.standard import NEUTRAL

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "models.md"
Written = tuple[Path, Expected]


@pytest.fixture(scope="module", params=FAMILIES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("family")
    return folder, expected(write(request.param, folder))


@pytest.mark.parametrize("name", ["native", "torch"])
def test_logits_and_tokens_equal_transformers(written: Written, name: str) -> None:
    if name == "native" and choose("cpu").name != "native":
        pytest.skip(choose("cpu").why)
    found = measure(written[0], choose("cpu", name), written[1])
    assert tuple(found.differences) == PARTS
    assert parity.holds(found), found


def test_every_family_that_is_served_is_measured() -> None:
    assert {f"{made.model}ForCausalLM" for made in FAMILIES.values()} == set(SERVED)


def test_another_answer_is_seen(tmp_path: Path) -> None:
    """The measure itself can fail: of the reference's answer, logits and tokens."""
    reference = expected(write("Llama 3", tmp_path))
    kernels = choose("cpu", "torch")
    answer = [*reference.answer[:9], (reference.answer[9] + 1) % 97, *reference.answer[10:]]
    other = measure(tmp_path, kernels, replace(reference, answer=answer))
    assert other.greedy == 9 and not parity.holds(other)
    logits_TV = reference.logits_TV.clone()
    logits_TV[45, 3] += 2e-3 * logits_TV.abs().max()
    other = measure(tmp_path, kernels, replace(reference, logits_TV=logits_TV))
    bad = [part for part in PARTS if other.differences[part] > parity.MOST]
    assert bad == ["decode", "hand-over"] and not parity.holds(other)


def test_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--markdown", "--kernels", "torch", "--family", "Qwen3"]
    assert parity.main(arguments) == 0
    title, rule, row = capsys.readouterr().out.splitlines()[-3:]
    assert title.startswith("| family | prefill | chunks |") and rule.startswith("|---|---:|")
    assert row.startswith("| Qwen3 | ") and row.endswith(f" | {ANSWER} of {ANSWER} | equal |")

    def wrong(*_: Any) -> Parity:
        return Parity(dict.fromkeys(PARTS, float("nan")), ANSWER, ("chunks",))

    monkeypatch.setattr(parity, "measure", wrong)
    assert parity.main(arguments) == 1
    assert "nan" in (out := capsys.readouterr().out) and "other in chunks" in out


def test_without_transformers_the_command_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    assert parity.main(["--kernels", "torch"]) == 2
    assert "transformers, which is not installed" in capsys.readouterr().err


def test_the_documentation_holds_a_row_for_every_family() -> None:
    text = DOCUMENTATION.read_text()
    assert [name for name in FAMILIES if f"\n| {name} | " not in text] == []
    assert [name for name in (*SERVED, *NEUTRAL) if f"`{name}`" not in text] == []


def test_the_documentation_s_example_of_a_new_family_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENTATION.read_text(), re.DOTALL)
    name = "penstock.models.families.seed_oss"
    written = types.ModuleType(name)
    written.__package__ = "penstock.models.families"
    exec(compile(code, "docs/models.md", "exec"), written.__dict__)
    monkeypatch.setitem(sys.modules, name, written)
    monkeypatch.setitem(SERVED, "SeedOssForCausalLM", "seed_oss")
    monkeypatch.setitem(FAMILIES, "Seed-OSS", family("SeedOss", head_dim=32))
    reference = expected(write("Seed-OSS", tmp_path))
    assert parity.holds(measure(tmp_path, choose("cpu"), reference))
