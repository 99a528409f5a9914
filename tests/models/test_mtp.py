"""DeepSeek's layer of multi-token prediction, against one built of transformers' decoder layer."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3DecoderLayer,
    DeepseekV3RMSNorm,
)

from penstock.engine.batch import BatchBuilder
from penstock.engine.sequence import Sequence
from penstock.engine.step import Slice, Step
from penstock.kernels.choice import Kernels, choose
from penstock.models.fields import ModelError
from penstock.models.mtp import Ahead, load_ahead
from penstock.models.registry import load_model
from penstock.protocol.messages import Peer, Prefill, Sampling

LAYERS, SLOTS, TOKENS, HIDDEN = 2, 8, 37, 64
PREFIX = f"model.layers.{LAYERS}."


class Module(nn.Module):
    """Section 2.2 of the DeepSeek-V3 report, of transformers' own parts."""

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__()
        self.enorm = DeepseekV3RMSNorm(HIDDEN)
        self.hnorm = DeepseekV3RMSNorm(HIDDEN)
        self.eh_proj = nn.Linear(2 * HIDDEN, HIDDEN, bias=False)
        self.block = DeepseekV3DecoderLayer(config, LAYERS)
        self.norm = DeepseekV3RMSNorm(HIDDEN)

    def forward(self, model: DeepseekV3ForCausalLM, hidden_TD: Tensor, token_T: Tensor) -> Tensor:
        """Logits [T, V]."""
        token_TD = model.model.embed_tokens(token_T)
        x = self.eh_proj(torch.cat((self.enorm(token_TD), self.hnorm(hidden_TD)), dim=-1))[None]
        positions = torch.arange(len(token_T))[None]
        mask = torch.full((1, 1, len(token_T), len(token_T)), -torch.inf).triu(1)
        turns = model.model.rotary_emb(x, positions)
        x = self.block(x, attention_mask=mask, position_embeddings=turns)
        return model.lm_head(self.norm(x))[0]

    def tensors(self) -> dict[str, Tensor]:
        """By the names of published checkpoints."""
        named: dict[str, Tensor] = {}
        for name, tensor in self.state_dict().items():
            name = name.removeprefix("block.")
            if name == "norm.weight":
                name = "shared_head.norm.weight"
            if name.endswith("experts.gate_up_proj"):
                for at, (gate, up) in enumerate(one.chunk(2) for one in tensor):
                    named[f"mlp.experts.{at}.gate_proj.weight"] = gate
                    named[f"mlp.experts.{at}.up_proj.weight"] = up
            elif name.endswith("experts.down_proj"):
                for at, down in enumerate(tensor):
                    named[f"mlp.experts.{at}.down_proj.weight"] = down
            else:
                named[name] = tensor
        return {f"{PREFIX}{name}": tensor.contiguous() for name, tensor in named.items()}


def randomise(module: nn.Module) -> None:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if "norm" in name or name.endswith("bias"):
            nn.init.normal_(tensor, mean=0.5, std=0.3)
        elif "inv_freq" not in name:
            nn.init.normal_(tensor, std=0.2)


@pytest.fixture(scope="module")
def config() -> DeepseekV3Config:
    return DeepseekV3Config(
        vocab_size=97,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=128,
        intermediate_size=96,
        moe_intermediate_size=32,
        n_routed_experts=8,
        n_group=4,
        topk_group=2,
        num_experts_per_tok=3,
        kv_lora_rank=32,
        q_lora_rank=48,
        qk_rope_head_dim=16,
        qk_nope_head_dim=16,
        v_head_dim=24,
        first_k_dense_replace=1,
        num_mtp_layers=1,
    )


@pytest.fixture(scope="module")
def model(config: DeepseekV3Config) -> DeepseekV3ForCausalLM:
    torch.manual_seed(0)
    model = DeepseekV3ForCausalLM(config).eval()
    randomise(model)
    return model


@pytest.fixture(scope="module")
def module(config: DeepseekV3Config) -> Module:
    torch.manual_seed(1)
    module = Module(config).eval()
    randomise(module)
    return module


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, model: DeepseekV3ForCausalLM, module: Module
) -> Path:
    """As DeepSeek publishes it: with copies of embedding and head in the module's layer."""
    folder = tmp_path_factory.mktemp("deepseek")
    model.save_pretrained(folder)
    copies = {
        f"{PREFIX}embed_tokens.weight": model.model.embed_tokens.weight.detach().clone(),
        f"{PREFIX}shared_head.head.weight": model.lm_head.weight.detach().clone(),
    }
    store(folder, module.tensors() | copies)
    return folder


def store(folder: Path, more: dict[str, Tensor]) -> None:
    file = folder / "model.safetensors"
    save_file(load_file(file) | more, file)


@pytest.fixture(params=["native", "torch"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    if request.param == "native" and choose("cpu").name != "native":
        pytest.skip(choose("cpu").why)
    return choose("cpu", request.param)


def both(
    folder: Path, kernels: Kernels, token_ids: list[int], cuts: list[int], all_rows: bool = True
) -> tuple[Tensor, Tensor]:
    """The decoder's hidden rows and the module's logits, computed in steps of these lengths."""
    decoder = load_model(folder, kernels, torch.float32).model
    (ahead,) = load_ahead(folder, decoder, kernels, torch.float32).layers
    sampling = Sampling(seed=0, prompt_logprobs=0)  # makes the builder want every row
    peer = Peer("router", 1, "")
    prefill = Prefill(1, 1, peer, "", "", token_ids[:-1], TOKENS + 1, [0], sampling)
    sequence = Sequence(prefill, [0], token_ids[:-1], pages=[3, 1, 4, 0, 2])
    # The module's own layer comes behind the decoder's.
    pages = torch.zeros(5, LAYERS + 1, 1, 1, SLOTS, 48)
    builder = BatchBuilder(SLOTS)
    hidden, logits = [], []
    start = 0
    with torch.inference_mode():
        for count in cuts:
            batch = builder.build(Step((Slice(sequence, start, count),)))
            hidden.append(decoder.forward(batch, pages))
            following = torch.tensor(token_ids[start + 1 : start + 1 + count], dtype=torch.int32)
            batch = replace(batch, token_T=following)
            if not all_rows:
                last = torch.tensor([count - 1], dtype=torch.int32)
                starts = torch.tensor([0, 1], dtype=torch.int32)
                batch = replace(batch, wanted_R=last, wanted_start_B1=starts)
            logits.append(ahead.logits(ahead.forward(hidden[-1], batch, pages, LAYERS)))
            start += count
    return torch.cat(hidden), torch.cat(logits)


def test_logits_are_those_of_the_report(
    folder: Path, model: DeepseekV3ForCausalLM, module: Module, kernels: Kernels
) -> None:
    tokens = torch.randint(0, 97, (TOKENS + 1,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        hidden_TD = model.model(tokens[None, :-1]).last_hidden_state[0]
        expected_TV = module(model, hidden_TD, tokens[1:])
    hidden, whole = both(folder, kernels, tokens.tolist(), [TOKENS])
    assert (hidden - hidden_TD).abs().max() <= 1e-4 * hidden_TD.abs().max()
    assert (whole - expected_TV).abs().max() <= 1e-4 * expected_TV.abs().max()
    for cuts in ([7, 16, 14], [1] * TOKENS, [30] + [1] * 7):
        assert torch.equal(both(folder, kernels, tokens.tolist(), cuts)[1], whole)
    rows = both(folder, kernels, tokens.tolist(), [20, 10, 7], all_rows=False)[1]
    assert torch.equal(rows, whole[[19, 29, 36]])


def loaded_ahead(folder: Path) -> Ahead:
    kernels = choose("cpu", "torch")
    decoder = load_model(folder, kernels, torch.float32).model
    return load_ahead(folder, decoder, kernels, torch.float32)


def test_a_checkpoint_without_the_module_says_so(
    tmp_path: Path, model: DeepseekV3ForCausalLM
) -> None:
    model.save_pretrained(tmp_path)
    ahead = loaded_ahead(tmp_path)
    assert ahead.layers == () and "holds no tensor" in ahead.why


def test_a_part_of_a_module_is_an_error(
    tmp_path: Path, model: DeepseekV3ForCausalLM, module: Module
) -> None:
    model.save_pretrained(tmp_path)
    tensors = module.tensors()
    del tensors[f"{PREFIX}hnorm.weight"]
    store(tmp_path, tensors)
    with pytest.raises(ModelError, match="1 tensors are missing.*hnorm"):
        loaded_ahead(tmp_path)
