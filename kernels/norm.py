"""Root mean square normalisation, with and without the residual sum before it.

    r = x                                   rms_norm
    r = residual + x, rounded to the dtype  add_rms_norm; residual becomes r
    out = weight * round(r * (mean(r^2) + epsilon)^(-1/2))

Everything inside is fp32; round() is the cast back to the model's dtype, before the weight, as
Hugging Face's LlamaRMSNorm does it. Source: Zhang and Sennrich, "Root Mean Square Layer
Normalization", arXiv 1910.07467.

T tokens in the batch, D model size.
"""

import torch

from .elementary import tree_sum
from .native import Library, half, require

Tensor = torch.Tensor


def rms_norm(x_TD: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
    x = x_TD.float()
    mean = tree_sum(x * x) / x.shape[-1]
    return weight_D * (x * (1.0 / torch.sqrt(mean + epsilon))).to(x_TD.dtype)


def add_rms_norm(x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
    residual_TD.add_(x_TD)
    return rms_norm(residual_TD, weight_D, epsilon)


def rms_norm_native(library: Library, x_TD: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
    return _launch(library, x_TD.contiguous(), None, weight_D, epsilon)


def add_rms_norm_native(
    library: Library, x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, epsilon: float
) -> Tensor:
    require(residual_TD.is_contiguous(), "add_rms_norm: the residual must be contiguous")
    require(
        residual_TD.shape == x_TD.shape
        and residual_TD.dtype == x_TD.dtype
        and residual_TD.device == x_TD.device,
        "add_rms_norm: the residual must have the shape, dtype and device of x",
    )
    return _launch(library, x_TD.contiguous(), residual_TD, weight_D, epsilon)


def _launch(
    library: Library, x_TD: Tensor, residual_TD: Tensor | None, weight_D: Tensor, epsilon: float
) -> Tensor:
    rows, size = x_TD.shape
    require(
        weight_D.shape == (size,)
        and weight_D.dtype == x_TD.dtype
        and weight_D.is_contiguous()
        and weight_D.device == x_TD.device,
        "rms_norm: the weight must be contiguous, where x is, of x's dtype and last size",
    )
    out_TD = torch.empty_like(x_TD)
    library.call(
        "penstock_norm",
        x_TD.data_ptr(),
        None if residual_TD is None else residual_TD.data_ptr(),
        weight_D.data_ptr(),
        out_TD.data_ptr(),
        rows,
        size,
        epsilon,
        half(x_TD),
        torch.get_num_threads(),
    )
    return out_TD
