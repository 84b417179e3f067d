"""Random sampling of a mini-batch that makes the same choice on CPU and GPU.

N: candidates (anchors or RoIs).
"""

import numpy as np

from model.utils.array_tool import as_array_like, get_xp


def sampling_keys(rng, like):
    """Draw one float32 key in [0, 1) per row of `like` on the host and move the keys, (N,), to where `like` lives."""
    return as_array_like(rng.random(len(like), dtype=np.float32), like)


def sample_labels(positive, negative, key, n_sample, pos_ratio):
    """Sample positives up to a share, then negatives for the rest, in the order of their keys.

    One sort and static shapes need no synchronization of GPU and host. (CuPy's sort itself synchronizes in versions
    without its pull request 9497.)

    Args:
        positive, negative: (N,) bool; a candidate that is both is positive.
        key: (N,) float32 in [0, 1). Equal keys are taken in the order of their index.
        n_sample: size of the mini-batch; fewer if there are fewer candidates.
        pos_ratio: largest share of positives, 0 to 1.

    Returns:
        (N,) int64: 1 for sampled positives, 0 for sampled negatives, -1 for all others.
    """
    xp = get_xp(key)
    group = xp.where(positive, np.int64(0), xp.where(negative, np.int64(1), np.int64(2)))  # (N,)
    order = xp.argsort(group + key, kind="stable")  # in float64, which keeps every bit of a key
    rank = xp.empty_like(order)
    rank[order] = xp.arange(len(order), dtype=order.dtype)
    n_positive = positive.sum()
    n_sampled = xp.minimum(n_positive, int(pos_ratio * n_sample))  # positives
    sampled = xp.where(positive, rank < n_sampled, negative & (rank - n_positive < n_sample - n_sampled))
    return xp.where(sampled, 1 - group, -1)
