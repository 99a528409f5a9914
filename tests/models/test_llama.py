"""Logits equal transformers' on small random checkpoints, however the prompt is cut into steps."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers import LlamaForCausalLM as Reference

from penstock.engine.batch import BatchBuilder
from penstock.engine.paged_memory import PageLayout
from penstock.engine.sequence import Sequence
from penstock.engine.step import Slice, Step
from penstock.kernels.choice import Kernels, choose
from penstock.models.checkpoint import Checkpoint
from penstock.models.fields import ModelError
from penstock.models.registry import Loaded, load_model
from penstock.protocol.messages import Peer, Prefill, Sampling

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "gqa": {},
    "mha": {"num_key_value_heads": 4},
    "mqa": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "bias": {"attention_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 32},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    "llama3 rope": {"rope_parameters": {**LLAMA3, "rope_theta": 1e4}},
}
SLOTS = 8
TOKENS = 41


@pytest.fixture(scope="module", params=["native", "torch"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    if request.param == "native" and choose("cpu").name != "native":
        pytest.skip(choose("cpu").why)
    return choose("cpu", request.param)


def save(folder: Path, dtype: torch.dtype, shard: str = "5GB", **changes: Any) -> Reference:
    sizes: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
    }
    torch.manual_seed(0)
    reference = Reference(LlamaConfig(**(sizes | changes))).eval()
    for name, parameter in reference.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    reference.to(dtype)  # pyright: ignore[reportArgumentType]
    reference.save_pretrained(folder, max_shard_size=shard)
    return reference


def logits(loaded: Loaded, token_ids: list[int], cuts: list[int]) -> torch.Tensor:
    """Logits of every position, the prompt computed in steps of the given lengths."""
    config = loaded.config
    sampling = Sampling(seed=0, prompt_logprobs=0)  # makes the builder want every row
    peer = Peer("router", 1, "")
    prefill = Prefill(1, 1, peer, "", "", token_ids, len(token_ids) + 1, [0], sampling)
    pages = -(-len(token_ids) // SLOTS)
    sequence = Sequence(prefill, [0], token_ids, pages=list(range(pages))[::-1])
    layout = PageLayout.of(config.blueprint, SLOTS, loaded.model.embedding_VD.dtype)
    memory = torch.zeros(layout.shape(pages), dtype=layout.dtype)
    builder = BatchBuilder(SLOTS)
    out = []
    start = 0
    with torch.inference_mode():
        for count in cuts:
            batch = builder.build(Step((Slice(sequence, start, count),)))
            out.append(loaded.model.logits(loaded.model.forward(batch, memory)))
            start += count
    assert start == len(token_ids)
    return torch.cat(out)


CUTS = {
    "one piece": [TOKENS],
    "chunks": [7, 16, 1, 17],
    "token by token": [1] * TOKENS,
    "prefill, then decode": [33] + [1] * 8,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_fp32_logits_equal_transformers(tmp_path: Path, kernels: Kernels, variant: str) -> None:
    reference = save(tmp_path, torch.float32, **VARIANTS[variant])
    loaded = load_model(tmp_path, kernels, torch.float32)
    token_ids = torch.randint(0, 97, (TOKENS,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = reference(token_ids[None]).logits[0]
    whole = logits(loaded, token_ids.tolist(), CUTS["one piece"])
    scale = expected.abs().max()
    assert (whole - expected).abs().max() <= 1e-4 * scale
    for cuts in CUTS.values():
        assert torch.equal(logits(loaded, token_ids.tolist(), cuts), whole)


def test_bf16_logits_are_near_transformers(tmp_path: Path, kernels: Kernels) -> None:
    """Both round after every operation, in other orders: about 2^-8 per operation, some cancel.

    The yardstick is the fp32 model of the same weights: we may be no further from it than a
    little more than transformers in bf16 is.
    """
    reference = save(tmp_path, torch.bfloat16)
    loaded = load_model(tmp_path, kernels, torch.bfloat16)
    token_ids = torch.randint(0, 97, (TOKENS,), generator=torch.Generator().manual_seed(1))
    whole = logits(loaded, token_ids.tolist(), CUTS["one piece"])
    with torch.inference_mode():
        theirs = reference(token_ids[None]).logits[0].float()
        exact = reference.float()(token_ids[None]).logits[0]
    scale = exact.abs().max()
    assert (whole - theirs).abs().max() <= 0.05 * scale
    assert (whole - exact).square().mean() <= 1.5 * (theirs - exact).square().mean()
    for cuts in CUTS.values():
        assert torch.equal(logits(loaded, token_ids.tolist(), cuts), whole)


def test_sharded_files_and_progress(tmp_path: Path) -> None:
    save(tmp_path / "one", torch.float32)
    save(tmp_path / "many", torch.float32, shard="100KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    seen: list[tuple[int, int, str]] = []
    kernels = choose("cpu", "torch")
    many = load_model(
        tmp_path / "many", kernels, torch.float32, progress=lambda *at: seen.append(at)
    )
    one = load_model(tmp_path / "one", kernels, torch.float32)
    token_ids = list(range(20))
    assert torch.equal(logits(one, token_ids, [20]), logits(many, token_ids, [20]))
    done = [at[0] for at in seen]
    assert done == sorted(done) and done[-1] == seen[-1][1] > 0
    assert len({total for _, total, _ in seen}) == 1


def test_unwanted_rows_change_no_bit(tmp_path: Path, kernels: Kernels) -> None:
    """The last layer computes the drawn row alone; its logits are those of the whole chunk."""
    save(tmp_path, torch.float32)
    loaded = load_model(tmp_path, kernels, torch.float32)
    token_ids = list(range(30))
    whole = logits(loaded, token_ids, [30])
    prefill = Prefill(1, 1, Peer("r", 1, ""), "", "", token_ids, 30, [0], Sampling(seed=0))
    sequence = Sequence(prefill, [0], token_ids, pages=[3, 1, 2, 0])
    memory = torch.zeros(4, 3, 2, 2, SLOTS, 16)
    builder = BatchBuilder(SLOTS)
    with torch.inference_mode():
        first = builder.build(Step((Slice(sequence, 0, 17),)))
        assert loaded.model.forward(first, memory).shape[0] == 0
        last = builder.build(Step((Slice(sequence, 17, 13, draw=(0,)),)))
        row = loaded.model.logits(loaded.model.forward(last, memory))
    assert torch.equal(row, whole[-1:])


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    save(tmp_path, torch.float32)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())

    def refusal(**changes: Any) -> str:
        path.write_text(json.dumps(config | changes))
        with pytest.raises(ModelError) as refused:
            load_model(tmp_path, choose("cpu", "torch"), torch.float32)
        return str(refused.value)

    text = refusal(num_hidden_layers=4)
    assert "missing: model.layers.3." in text
    text = refusal(num_hidden_layers=2)
    assert "unexpected: model.layers.2." in text and "more" in text
    text = refusal(vocab_size=98)
    assert "mis-shaped: " in text and "is [97, 64] but config.json means [98, 64]" in text


def test_broken_files_are_named(tmp_path: Path) -> None:
    save(tmp_path, torch.float32)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read"):
        Checkpoint(tmp_path)
    file.unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors missing"):
        Checkpoint(tmp_path)
    index = {"weight_map": {"x": "../elsewhere.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="must lie in the model folder"):
        Checkpoint(tmp_path)


def test_digest_names_config_and_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, torch.float32)
    for whole, sample in itertools.product((True, False), repeat=2):
        monkeypatch.setattr("penstock.models.checkpoint.DIGEST_BYTES", 1 << 30 if whole else 0)
        monkeypatch.setattr("penstock.models.checkpoint.SHORTEST_SAMPLE", 64 if sample else 4096)
        file, config = tmp_path / "model.safetensors", tmp_path / "config.json"
        before = Checkpoint(tmp_path).digest()
        assert before == Checkpoint(tmp_path).digest()
        weights = file.read_bytes()
        file.write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
        assert Checkpoint(tmp_path).digest() != before
        file.write_bytes(weights)
        text = config.read_text()
        config.write_text(text + " ")
        assert Checkpoint(tmp_path).digest() != before
        config.write_text(text)
