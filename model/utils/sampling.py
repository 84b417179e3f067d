"""Random sampling that gives the same choice on CPU and GPU.

N: candidates.
"""
import numpy as np

from model.utils.array import as_array_like, get_xp


def random_key(rng, like):
    """One float32 key in [0, 1) for each row of `like`, drawn on the host: (N,), where `like` lives."""
    return as_array_like(rng.random(len(like), dtype=np.float32), like)


def draw(positive, negative, key, n_sample, pos_ratio):
    """Draws a mini-batch: positives up to a share, negatives for the rest of it, each those with the smallest keys.

    One sort, fixed shapes: on a GPU no number has to reach the host. (CuPy's sort itself waits for the GPU in versions
    without its pull request 9497.)

    Args:
        positive, negative: (N,) bool; a candidate that is both is positive.
        key: (N,) float32 in [0, 1). Equal keys are taken in the order of their index.
        n_sample: size of the mini-batch; fewer where the candidates are fewer.
        pos_ratio: largest share of positives.

    Returns:
        (N,) int64: 1 for the positives that are drawn, 0 for the negatives, -1 for all others.
    """
    xp = get_xp(key)
    group = xp.where(positive, np.int64(0), xp.where(negative, np.int64(1), np.int64(2)))
    order = xp.argsort(group + key, kind="stable")  # in float64, which keeps every bit of a key
    rank = xp.empty_like(order)
    rank[order] = xp.arange(len(order), dtype=order.dtype)
    n_positive = positive.sum()
    n_kept = xp.minimum(n_positive, int(pos_ratio * n_sample))
    kept = xp.where(positive, rank < n_kept, negative & (rank - n_positive < n_sample - n_kept))
    return xp.where(kept, 1 - group, -1)
