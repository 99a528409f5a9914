"""The probe passes here, and sees what is not exact."""

import dataclasses

import torch

from penstock.kernels.exactness import AttentionShape, probe

KINDS = (
    AttentionShape(query_heads=2, groups=1, head=64),
    AttentionShape(query_heads=4, groups=2, head=32, window=40, sinks=True, head_norm=True),
    AttentionShape(query_heads=3, groups=1, head=48, value_size=32),
)


def test_every_operation_is_exact_here(kernels, dtype):
    report = probe(kernels, dtype, linears=((96, 512), (64, 3072)), attentions=KINDS)
    assert report.inexact == () and len(report.checked) == 8
    assert "row-exact" in report.sentence


def test_each_kind_of_attention_is_asked(kernels):
    """What only one kind runs is broken in turn, and that kind alone is named."""

    def latent(compressed, norm, epsilon, *rest):
        return kernels.store_latent(compressed, norm, compressed.shape[0], *rest)

    def normed(qkv, *rest):
        norms = (qkv.shape[0],) if len(rest) > 8 else ()
        return kernels.rotate_and_store(qkv, *rest[: len(rest) - len(norms)], *norms)

    def windowed(q, *rest):
        window = rest[7] and rest[7] - (q.shape[0] > 20)
        return kernels.paged_attention(q, *rest[:7], window, *rest[8:])

    for change, kinds in (
        ({"store_latent": latent}, KINDS[2:]),
        ({"rotate_and_store": normed}, KINDS[1:2]),
        ({"paged_attention": windowed}, KINDS[1:2]),
    ):
        broken = dataclasses.replace(kernels, **change)
        report = probe(broken, torch.float32, linears=(), attentions=KINDS)
        assert report.inexact == tuple(map(str, kinds)), change


def test_the_probe_sees_rows_that_know_each_other(kernels):
    def leaking(x, weight, epsilon):
        return kernels.rms_norm(x, weight, epsilon) * (1 + x.shape[0] * 2.0**-20)

    def by_threads(gate_up):
        return kernels.silu_mul(gate_up) + torch.get_num_threads()

    broken = dataclasses.replace(kernels, rms_norm=leaking, silu_mul=by_threads)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        report = probe(broken, torch.float32, linears=(), attentions=KINDS[:1])
    finally:
        torch.set_num_threads(threads)
    assert report.inexact == ("rms_norm",)
    assert report.by_threads == ("silu_mul",)
    assert "NOT row-exact: rms_norm" in report.sentence
