"""Truncated SVD of fc6 and fc7: fewer parameters and a faster head, in prediction only (Fast R-CNN 3.1, 4.4).

u, v: outputs and inputs of a linear layer. t: singular values that are kept.
"""

import torch
from torch import nn


@torch.no_grad()
def compress(layer, t):
    """Replace a linear layer by two, of t (u + v) weights instead of u v: the best approximation of rank t.

    Args:
        layer: `nn.Linear` with the (u, v) weight W = U S V^T.
        t: 1 ... min(u, v), where the product is exact.

    Returns:
        `nn.Sequential` of V_t^T scaled by S_t, without bias, and U_t, with the bias of `layer`.

    Raises:
        ValueError: t is larger.
    """
    n_output, n_input = layer.weight.shape
    if t > min(n_output, n_input):
        raise ValueError(f"a layer with {n_input} inputs and {n_output} outputs has no {t} singular values: take fewer")
    # U from W W^T = U S² U^T, at a fraction of the time of an SVD where v is much larger than u; S V^T = U^T W
    u = torch.linalg.eigh(layer.weight @ layer.weight.T).eigenvectors[:, -t:]  # (u, t), of the largest values
    first, second = nn.Linear(n_input, t, bias=False), nn.Linear(t, n_output)
    first.weight, second.weight, second.bias = nn.Parameter(u.T @ layer.weight), nn.Parameter(u), layer.bias
    return nn.Sequential(first, second)


def compress_head(head, ranks):
    """Compress the layers fc6 and fc7 of a RoI head to (t, t) singular values, in place.

    Raises:
        ValueError: the head has no such layers, or too small ones.
    """
    names = ("fc6", "fc7")
    if not all(isinstance(getattr(head, name, None), nn.Linear) for name in names):
        raise ValueError(f"a truncated SVD needs the layers fc6 and fc7, which {type(head).__name__} does not have")
    for name, t in zip(names, ranks, strict=True):
        setattr(head, name, compress(getattr(head, name), t))
