"""Shapes of targets depend on shapes alone, so that a GPU never has to send values to the host for them.

Without a GPU, an array that raises when it is read replaces it: no value may decide a branch, length or index.
"""

import numpy as np
import pytest

from model.utils.anchor_target_creator import AnchorTargetCreator
from model.utils.anchors import enumerate_shifted_anchor, generate_anchor_base
from model.utils.proposal_target_creator import ProposalTargetCreator

IMG_SIZE = (320, 480)


class Asked(Exception):
    """The host read a value."""


class Silent(np.ndarray):
    """An array that raises when a value is read."""

    def _refuse(self, *args):
        raise Asked

    __bool__ = __int__ = __float__ = __index__ = __iter__ = item = tolist = nonzero = _refuse

    def __getitem__(self, key):
        keys = key if isinstance(key, tuple) else (key,)
        if any(getattr(part, "dtype", int) is np.dtype(bool) for part in keys):  # how many are true?
            raise Asked
        return super().__getitem__(key)


def silent(values, dtype=np.float32):
    return np.array(values, dtype).view(Silent)


def random_bbox(rng, n):
    corner = rng.uniform(0, 200, (n, 2))
    return np.concatenate((corner, corner + rng.uniform(20, 150, (n, 2))), 1).astype(np.float32)


@pytest.mark.parametrize("n_object", [0, 4])
def test_target_creators_read_no_value(n_object):
    rng = np.random.default_rng(0)
    bbox, label = random_bbox(rng, n_object), rng.integers(0, 5, n_object)
    anchor, roi = enumerate_shifted_anchor(generate_anchor_base(), 16, 20, 30), random_bbox(rng, 300)
    blind = silent(bbox), silent(label, np.int64)
    for creator, seen, hidden in (
        (AnchorTargetCreator(), (bbox, anchor, IMG_SIZE), (blind[0], silent(anchor), IMG_SIZE)),
        (ProposalTargetCreator(), (roi, bbox, label), (silent(roi), *blind)),
    ):
        expected, found = (creator(*args, np.random.default_rng(1)) for args in (seen, hidden))
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_array_equal(one, other.view(np.ndarray))


def test_reading_a_value_raises():
    array = silent([1, 2])
    for ask in (
        lambda: array[array > 1],
        lambda: bool(array[:1] > 1),
        lambda: int(array[:1]),
        lambda: np.flatnonzero(array > 1),
        lambda: [*array],
        lambda: array[:1].item(),
    ):
        with pytest.raises(Asked):
            ask()
