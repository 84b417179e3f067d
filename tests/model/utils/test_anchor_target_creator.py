"""Anchor targets: positive, negative and ignored anchors, their locs, and sampling."""

import math

import numpy as np
import pytest

from model.utils.anchor_target_creator import AnchorTargetCreator

IMG_SIZE = (100, 120)
NONE = np.zeros((0, 4), np.float32)


def boxes(*rows):
    return np.array(rows, np.float32)


def target(bbox, anchor, seed=0, **options):
    return AnchorTargetCreator(**options)(bbox, anchor, IMG_SIZE, np.random.default_rng(seed))


def many(n_positive, n_negative):
    """An object and anchors of both kinds, mixed: (bbox, anchor, where positive)."""
    is_positive = np.random.default_rng(7).permutation(np.arange(n_positive + n_negative) < n_positive)
    anchor = np.where(is_positive[:, None], boxes([10, 20, 30, 70]), boxes([50, 5, 90, 25]))
    return boxes([10, 20, 30, 70]), anchor, is_positive


def test_labels_and_locs():
    bbox = boxes([10, 10, 50, 30])
    anchor = boxes(
        [10, 10, 50, 30],  # IoU 1
        [10, 10, 50, 26],  # 0.8
        [10, 10, 50, 22],  # 0.6: neither
        [10, 10, 50, 16],  # 0.3, not below 0.3: neither
        [10, 10, 50, 15],  # 0.25
        [60, 60, 90, 110],  # 0; would be outside if height and width were swapped
        [0, 0, 100, 120],  # the whole image is inside
        [-1, 60, 50, 90],
        [60, -1, 90, 30],
        [60, 5, 101, 25],
        [60, 100, 90, 121],  # over the four borders
    )
    loc, label = target(bbox, anchor)
    assert label.tolist() == [1, 1, -1, -1, 0, 0, 0, -1, -1, -1, -1]
    np.testing.assert_allclose(loc[:2], [[0, 0, 0, 0], [0, 2 / 16, 0, math.log(20 / 16)]], rtol=1e-5)
    assert (loc.dtype, label.dtype) == (np.float32, np.int64)
    assert loc.shape == (11, 4)


def test_anchors_may_cross_the_border_as_far_as_allowed():
    bbox = boxes([0, 0, 40, 30])
    anchor = boxes([-3, 0, 40, 30], [-4, 0, 40, 30], [70, 90, 100, 123], [70, 90, 104, 110], [-500, 60, 50, 90])
    assert target(bbox, anchor, allowed_border=3).label.tolist() == [1, -1, 0, -1, -1]
    assert target(bbox, anchor, allowed_border=math.inf).label.tolist() == [1, 1, 0, 0, 0]


def test_iou_exactly_at_a_threshold():
    bbox = boxes([0, 0, 40, 40])
    anchor = boxes([0, 0, 40, 40], [0, 0, 40, 20], [0, 0, 40, 10])  # 1, 1/2, 1/4
    assert target(bbox, anchor, pos_iou_thresh=0.5, neg_iou_thresh=0.25).label.tolist() == [1, 1, -1]
    bbox, anchor = boxes([0, 0, 40, 100]), boxes([0, 0, 40, 100], [0, 0, 40, 70], [0, 0, 40, 30])
    assert target(bbox, anchor).label.tolist() == [1, 1, -1]  # thresholds of 0.7 and 0.3


def test_best_anchors_of_an_object_are_positive_even_below_the_threshold_of_negatives():
    bbox = boxes([0, 0, 40, 20])
    anchor = boxes([0, 0, 40, 4], [0, 16, 40, 20], [0, 0, 40, 3], [60, 60, 70, 70])  # 0.2, 0.2, 0.15, 0
    loc, label = target(bbox, anchor)
    assert label.tolist() == [1, 1, 0, 0]
    np.testing.assert_allclose(loc[:2, 1], [8 / 4, -8 / 4], rtol=1e-6)


def test_positive_regresses_to_the_object_that_it_overlaps_most():
    bbox = boxes([0, 0, 40, 40], [0, 30, 10, 40])
    anchor = boxes([0, 0, 40, 40], [0, 0, 40, 36], [0, 24, 12, 40])
    loc, label = target(bbox, anchor)
    # the second anchor is positive for the first object; the third is the best of the second object
    assert label.tolist() == [1, 1, 1]
    np.testing.assert_allclose(loc[1], [0, 2 / 36, 0, math.log(40 / 36)], atol=1e-6)
    np.testing.assert_allclose(loc[2], [-1 / 12, 3 / 16, math.log(10 / 12), math.log(10 / 16)], rtol=1e-5)
    # the only anchor is the best of both, and 4/15 > 1/16: the target is the wide one, whichever comes first
    wide, small = [0, 0, 20, 30], [0, 0, 5, 10]
    for bbox in (boxes(wide, small), boxes(small, wide)):
        loc, label = target(bbox, boxes([0, 0, 20, 8]))
        assert label.tolist() == [1]
        np.testing.assert_allclose(loc[0], [0, 11 / 8, 0, math.log(30 / 8)], atol=1e-6)


def test_object_that_no_inside_anchor_touches_matches_none():
    bbox = boxes([0, 100, 20, 120], [10, 10, 50, 30])  # the first: by one over the border only
    anchor = boxes([0, 100, 20, 125], [10, 10, 50, 30], [60, 60, 90, 90], [60, 20, 90, 50])
    assert target(bbox, anchor).label.tolist() == [-1, 1, 0, 0]


def test_best_anchor_is_looked_for_inside():
    anchor = boxes([0, 100, 20, 125], [0, 100, 20, 110], [60, 60, 90, 90])  # 4/5 but over the border, 1/2, 0
    assert target(boxes([0, 100, 20, 120]), anchor).label.tolist() == [-1, 1, 0]


def test_positives_that_are_not_sampled_are_no_negatives():
    anchor = np.repeat(boxes([0, 0, 40, 4], [60, 60, 70, 70]), (6, 3), 0)  # six are the best, with 0.2
    label = target(boxes([0, 0, 40, 20]), anchor, n_sample=8, pos_ratio=0.25).label
    assert sorted(label[:6]) == [-1, -1, -1, -1, 1, 1]
    assert label[6:].tolist() == [0, 0, 0]


def test_object_without_area():
    loc, label = target(boxes([20, 15, 20, 25]), boxes([10, 10, 50, 30], [60, 60, 90, 90]))
    assert label.tolist() == [0, 0]
    assert np.isfinite(loc).all()


def test_no_object():
    loc, label = target(NONE, boxes([10, 10, 50, 30], [-1, 5, 30, 40], [60, 60, 90, 90]))
    assert label.tolist() == [0, -1, 0]
    np.testing.assert_array_equal(loc, np.zeros((3, 4)))
    assert (loc.dtype, label.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("bbox", [NONE, boxes([10, 10, 50, 30])])
def test_no_anchor_inside(bbox):
    assert target(bbox, boxes([-1, 10, 50, 30], [10, 10, 50, 121])).label.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("n_positive", "n_negative", "sampled"),
    [
        (20, 30, (5, 7)),  # 0.45 of 12 is 5.4
        (3, 30, (3, 9)),  # negatives fill the rest
        (20, 2, (5, 2)),
        (20, 0, (5, 0)),
        (3, 4, (3, 4)),
    ],
)
def test_shares_of_the_sample(n_positive, n_negative, sampled):
    bbox, anchor, is_positive = many(n_positive, n_negative)
    label = target(bbox, anchor, n_sample=12, pos_ratio=0.45).label
    assert ((label == 1).sum(), (label == 0).sum()) == sampled
    assert is_positive[label == 1].all()
    assert not is_positive[label == 0].any()


def test_256_with_at_most_half_positive_by_default():
    label = target(*many(200, 400)[:2]).label
    assert ((label == 1).sum(), (label == 0).sum()) == (128, 128)


def test_smallest_keys_are_sampled():
    bbox, anchor, is_positive = many(20, 30)
    key = np.random.default_rng(3).random(50, dtype=np.float32)
    label = target(bbox, anchor, seed=3, n_sample=10).label
    np.testing.assert_array_equal(np.sort(key[label == 1]), np.sort(key[is_positive])[:5])
    np.testing.assert_array_equal(np.sort(key[label == 0]), np.sort(key[~is_positive])[:5])
    np.testing.assert_array_equal(label, target(bbox, anchor, seed=3, n_sample=10).label)
    assert (label != target(bbox, anchor, seed=4, n_sample=10).label).any()


@pytest.mark.parametrize("n_positive", [0, 2, 9])
def test_one_key_an_anchor_whatever_comes_out(n_positive):
    bbox, anchor, _ = many(n_positive, 9 - n_positive)
    anchor = np.concatenate((anchor, boxes([-1, 20, 30, 70], [10, 20, 30, 45])))  # outside; IoU 1/2
    after = np.random.default_rng(1)
    after.random(11, dtype=np.float32)
    for objects in (bbox, NONE):
        rng = np.random.default_rng(1)
        AnchorTargetCreator(n_sample=4)(objects, anchor, IMG_SIZE, rng)
        assert rng.bit_generator.state == after.bit_generator.state
