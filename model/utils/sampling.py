"""Random sampling that gives the same choice on CPU and GPU.

N: candidates.
"""
import numpy as np

from model.utils.array import as_array_like, get_xp


def random_key(rng, like):
    """One float32 key in [0, 1) for each row of `like`, drawn on the host: (N,), where `like` lives."""
    return as_array_like(rng.random(len(like), dtype=np.float32), like)


def keep_smallest(candidate, key, n):
    """Keeps the `n` candidates with the smallest keys, or all if they are fewer.

    Args:
        candidate: (N,) bool.
        key: (N,) float32 in [0, 1). Equal keys are taken in the order of their index.
        n: how many to keep; a number, or an array of one number.

    Returns:
        (N,) bool.
    """
    xp = get_xp(candidate)
    order = xp.argsort(xp.where(candidate, key, np.float32(2)), kind="stable")  # candidates first
    rank = xp.empty_like(order)
    rank[order] = xp.arange(len(order), dtype=order.dtype)
    return candidate & (rank < n)
