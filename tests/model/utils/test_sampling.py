"""Sampling by keys: the smallest are taken, and there is exactly one key per candidate."""

import numpy as np
import pytest
import torch

from model.utils.sampling import sample_labels, sampling_keys

#                    0      1     2     3      4     5      6     7
POSITIVE = np.array([True, False, True, False, True, False, True, False])
NEGATIVE = np.array([False, True, False, True, False, True, False, False])
KEY = np.array([0.5, 0.6, 0.2, 0.0, 0.999, 0.3, 0.3, 0.1], np.float32)


@pytest.mark.parametrize(
    ("n_sample", "pos_ratio", "positive", "negative"),
    [
        (0, 0.5, [], []),
        (2, 0.5, [2], [3]),
        (4, 0.5, [2, 6], [3, 5]),
        (5, 0.5, [2, 6], [1, 3, 5]),
        (4, 0.25, [2], [1, 3, 5]),
        (4, 1, [0, 2, 4, 6], []),
        (6, 0.9, [0, 2, 4, 6], [3, 5]),
        (4, 0, [], [1, 3, 5]),
        (10**6, 1, [0, 2, 4, 6], [1, 3, 5]),
    ],
)
def test_the_smallest_keys_are_sampled(n_sample, pos_ratio, positive, negative):
    drawn = sample_labels(POSITIVE, NEGATIVE, KEY, n_sample, pos_ratio)
    assert drawn.dtype == np.int64
    np.testing.assert_array_equal(np.flatnonzero(drawn == 1), positive)
    np.testing.assert_array_equal(np.flatnonzero(drawn == 0), negative)
    assert set(drawn.tolist()) <= {-1, 0, 1}


def test_ties_are_sampled_in_order():
    odd = np.arange(60) % 2 == 1  # long enough for an unstable sort to mix them
    drawn = sample_labels(odd, ~odd, np.full(60, 0.5, np.float32), 14, 0.5)
    np.testing.assert_array_equal(np.flatnonzero(drawn == 1), [1, 3, 5, 7, 9, 11, 13])
    np.testing.assert_array_equal(np.flatnonzero(drawn == 0), [0, 2, 4, 6, 8, 10, 12])


def test_a_candidate_that_is_both_is_positive():
    both = np.ones(4, bool)
    assert sample_labels(both, both, KEY[:4], 2, 0.5).tolist() == [-1, -1, -1, 1]  # and not sampled as a negative, too


def test_keys_that_differ_in_their_last_bit():
    key = 1 - np.array([1, 2, 3, 4], np.float32) * 2**-24  # adding a float32 to them would make some equal
    assert len(set(key.tolist())) == 4
    negative = np.ones(4, bool)
    assert sample_labels(~negative, negative, key, 1, 0.5).tolist() == [-1, -1, -1, 0]
    assert sample_labels(~negative, negative, key, 2, 0.5).tolist() == [-1, -1, 0, 0]


@pytest.mark.parametrize("n_sample", [0, 3])
def test_no_candidates(n_sample):
    none = np.zeros(8, bool)
    assert sample_labels(none, none, KEY, n_sample, 0.5).tolist() == [-1] * 8
    assert sample_labels(none[:0], none[:0], KEY[:0], n_sample, 0.5).shape == (0,)


def test_one_key_per_row():
    rng, same = np.random.default_rng(3), np.random.default_rng(3)
    key = sampling_keys(rng, np.zeros((5, 4), np.float32))
    np.testing.assert_array_equal(key, same.random(5, dtype=np.float32))
    assert key.dtype == np.float32
    assert rng.random() == same.random()  # nothing else was drawn
    assert sampling_keys(rng, np.zeros((0, 4), np.float32)).shape == (0,)


def test_keys_are_on_the_device_of_the_candidates():
    key = sampling_keys(np.random.default_rng(3), torch.zeros(5, 4))
    assert key.dtype == torch.float32
    np.testing.assert_array_equal(key, sampling_keys(np.random.default_rng(3), np.zeros((5, 4))))
