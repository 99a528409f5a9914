"""The probe passes here, and sees what is not exact."""

import dataclasses

import torch

from penstock.kernels.exactness import probe


def test_every_operation_is_exact_here(kernels, dtype):
    report = probe(kernels, dtype, linears=((96, 512), (64, 3072)), groups=1, query_heads=2)
    assert report.inexact == () and len(report.checked) == 5
    assert "row-exact" in report.sentence


def test_the_probe_sees_rows_that_know_each_other(kernels):
    def leaking(x, weight, epsilon):
        return kernels.rms_norm(x, weight, epsilon) * (1 + x.shape[0] * 2.0**-20)

    def by_threads(gate_up):
        return kernels.silu_mul(gate_up) + torch.get_num_threads()

    broken = dataclasses.replace(kernels, rms_norm=leaking, silu_mul=by_threads)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        report = probe(broken, torch.float32, linears=(), query_heads=1, groups=1, head=32)
    finally:
        torch.set_num_threads(threads)
    assert report.inexact == ("rms_norm",)
    assert report.by_threads == ("silu_mul",)
    assert "NOT row-exact: rms_norm" in report.sentence
