"""Sampling by keys: the smallest are kept, and exactly one key is drawn a candidate."""
import numpy as np
import pytest
import torch

from model.utils.sampling import keep_smallest, random_key

CANDIDATE = np.array([True, False, True, True, True, False])
KEY = np.array([0.5, 0.0, 0.2, 0.999, 0.3, 0.1], np.float32)


@pytest.mark.parametrize(("n", "kept"), [
    (0, []), (1, [2]), (2, [2, 4]), (3, [0, 2, 4]), (4, [0, 2, 3, 4]), (5, [0, 2, 3, 4]),
    (10**6, [0, 2, 3, 4]), (np.array([True, True, False]).sum(), [2, 4]),
])
def test_keeps_the_candidates_with_the_smallest_keys(n, kept):
    keep = keep_smallest(CANDIDATE, KEY, n)
    assert keep.dtype == bool
    np.testing.assert_array_equal(np.flatnonzero(keep), kept)


def test_equal_keys_are_taken_in_order():
    n = 50  # long enough for an unstable sort to mix them
    keep = keep_smallest(np.arange(n) % 2 == 1, np.full(n, 0.5, np.float32), 7)
    np.testing.assert_array_equal(np.flatnonzero(keep), [1, 3, 5, 7, 9, 11, 13])


@pytest.mark.parametrize("n", [0, 3])
def test_no_candidates(n):
    assert not keep_smallest(np.zeros(6, bool), KEY, n).any()
    assert keep_smallest(np.zeros(0, bool), np.zeros(0, np.float32), n).shape == (0,)


def test_one_key_a_row():
    rng, same = np.random.default_rng(3), np.random.default_rng(3)
    key = random_key(rng, np.zeros((5, 4), np.float32))
    np.testing.assert_array_equal(key, same.random(5, dtype=np.float32))
    assert key.dtype == np.float32
    assert rng.random() == same.random()  # nothing else was drawn
    assert random_key(rng, np.zeros((0, 4), np.float32)).shape == (0,)


def test_key_is_where_the_candidates_are():
    key = random_key(np.random.default_rng(3), torch.zeros(5, 4))
    assert key.dtype == torch.float32
    np.testing.assert_array_equal(key, random_key(np.random.default_rng(3), np.zeros((5, 4))))
