"""RoI targets: objects and background, their locs, and sampling."""

import math

import numpy as np
import pytest

from model.utils.proposal_target_creator import ProposalTargetCreator

NONE = np.zeros((0, 4), np.float32)
NO_LABEL = np.zeros(0, np.int64)


def boxes(*rows):
    return np.array(rows, np.float32)


def labels(*values):
    return np.array(values, np.int64)


def target(roi, bbox, label, seed=0, **options):
    """Return the sampled rows, after checking those that pad."""
    creator = ProposalTargetCreator(**options)
    padded = creator(roi, bbox, label, np.random.default_rng(seed))
    assert {len(part) for part in padded} == {min(creator.n_sample, len(roi) + len(bbox))}
    assert np.isfinite(padded.gt_roi_loc).all()
    n = (padded.gt_roi_label >= 0).sum()
    assert (padded.gt_roi_label[n:] == -1).all()
    assert {tuple(row) for row in padded.sample_roi} <= {tuple(row) for row in np.concatenate((roi, bbox))}
    return type(padded)(*(part[:n] for part in padded))


def many(n_positive, n_negative):
    """RoIs of both kinds, mixed; the object, of class 4, counts as one positive: (roi, bbox, label)."""
    first_positive = np.arange(n_positive + n_negative - 1) < n_positive - 1
    is_positive = np.random.default_rng(7).permutation(first_positive)
    side = np.linspace(60, 70, len(is_positive))  # all different
    roi = np.stack((0 * side, 20 + 0 * side, 20 + 0 * side, np.where(is_positive, side, side - 35)), 1)
    return roi.astype(np.float32), boxes([0, 20, 20, 70]), labels(4)


BBOX = boxes([10, 10, 50, 30], [40, 20, 60, 90])
LABEL = labels(6, 0)
ROI = boxes(
    [40, 30, 56, 80],  # 4/7 with the second object: height 16, width 50, centre (48, 55)
    [10, 10, 50, 18],  # 2/5 with the first
    [70, 70, 90, 90],  # 0
    [14, 12, 54, 32],
)  # about 0.7 with the first: 40 x 20, centre (34, 22)


def test_labels_and_locs():
    roi, loc, label = target(ROI, BBOX, LABEL, n_sample=20)
    # positives first, in the order of the RoIs; the objects follow the proposals
    np.testing.assert_array_equal(roi[:4], [ROI[0], ROI[3], BBOX[0], BBOX[1]])
    np.testing.assert_array_equal(roi[4:], ROI[1:3])
    assert label.tolist() == [1, 7, 7, 1, 0, 0]
    np.testing.assert_allclose(
        loc[:4],
        [
            [2 / 16 / 0.1, 0, math.log(20 / 16) / 0.2, math.log(70 / 50) / 0.2],
            [-4 / 40 / 0.1, -2 / 20 / 0.1, 0, 0],
            [0, 0, 0, 0],
            [0, 0, 0, 0],
        ],
        atol=1e-5,
    )
    assert np.isfinite(loc).all()
    assert (roi.dtype, loc.dtype, label.dtype) == (np.float32, np.float32, np.int64)


def test_locs_are_normalised_by_the_given_numbers():
    mean, std = (0.1, 0.2, 0.3, 0.4), (2, 4, 5, 8)
    _, loc, label = target(ROI[:1], BBOX[1:], labels(5), loc_mean=mean, loc_std=std)
    assert label.tolist() == [6, 6]
    np.testing.assert_allclose(
        loc[0], [(2 / 16 - 0.1) / 2, -0.2 / 4, (math.log(20 / 16) - 0.3) / 5, (math.log(70 / 50) - 0.4) / 8], rtol=1e-5
    )
    assert loc.dtype == np.float32


def test_object_of_the_largest_iou():
    bbox = boxes([0, 0, 20, 30], [0, 0, 20, 24], [0, 0, 20, 12])  # 4/5, 1 and 1/2 with the RoI
    _, loc, label = target(boxes([0, 0, 20, 24]), bbox, labels(2, 5, 3))
    assert label.tolist() == [6, 3, 6, 4]
    np.testing.assert_allclose(loc, np.zeros((4, 4)), atol=1e-6)


def test_iou_exactly_at_a_threshold():
    bbox = boxes([0, 0, 40, 40])
    roi = boxes([0, 0, 40, 20], [0, 0, 40, 10], [0, 0, 40, 9], [60, 60, 70, 70])  # 1/2, 1/4, less, 0
    sample = target(roi, bbox, labels(0), n_sample=20, neg_iou_thresh_lo=0.25)
    assert sample.gt_roi_label.tolist() == [1, 1, 0]  # [lo, hi)
    np.testing.assert_array_equal(sample.sample_roi, [roi[0], bbox[0], roi[1]])
    assert target(roi, bbox, labels(0), n_sample=20).gt_roi_label.tolist() == [1, 1, 0, 0, 0]
    lonely = target(roi, bbox, labels(0), n_sample=20, pos_iou_thresh=0.75)  # 1/2 is neither
    assert lonely.gt_roi_label.tolist() == [1, 0, 0, 0]
    easy = target(roi, bbox, labels(0), n_sample=20, pos_iou_thresh=0.25)  # 1/4 is positive, and so no background
    assert easy.gt_roi_label.tolist() == [1, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("n_positive", "n_negative", "sampled"),
    [(20, 30, (3, 7)), (2, 30, (2, 8)), (20, 4, (3, 4)), (20, 0, (3, 0)), (1, 4, (1, 4))],
)
def test_shares_of_the_sample(n_positive, n_negative, sampled):
    label = target(*many(n_positive, n_negative), n_sample=10, pos_ratio=0.3).gt_roi_label
    assert label.tolist() == [5] * sampled[0] + [0] * sampled[1]


def test_128_with_at_most_a_quarter_positive_by_default():
    label = target(*many(100, 200)).gt_roi_label
    assert ((label > 0).sum(), (label == 0).sum()) == (32, 96)


def test_objects_alone():
    roi, loc, label = target(NONE, BBOX, LABEL)
    np.testing.assert_array_equal(roi, BBOX)
    np.testing.assert_array_equal(loc, np.zeros((2, 4)))
    assert label.tolist() == [7, 1]


@pytest.mark.parametrize(("lo", "n"), [(0.0, 3), (0.1, 0)])
def test_no_object(lo, n):
    roi, loc, label = target(ROI, NONE, NO_LABEL, n_sample=3, neg_iou_thresh_lo=lo)
    assert roi.shape == loc.shape == (n, 4)
    assert label.tolist() == [0] * n
    assert not loc.any()
    assert (roi.dtype, loc.dtype, label.dtype) == (np.float32, np.float32, np.int64)


def test_nothing_at_all():
    roi, loc, label = target(NONE, NONE, NO_LABEL)
    assert (roi.shape, loc.shape, label.shape) == ((0, 4), (0, 4), (0,))
    assert label.dtype == np.int64


def test_boxes_without_area():
    flat = boxes([20, 30, 20, 60])
    _, loc, label = target(flat, flat, labels(2))
    assert label.tolist() == [0, 0]
    assert np.isfinite(loc).all()


def test_smallest_keys_are_sampled():
    roi, bbox, label = many(20, 30)
    key, candidates = np.random.default_rng(3).random(50, dtype=np.float32), np.concatenate((roi, bbox))
    is_positive = candidates[:, 3] >= 60
    expected = [
        np.flatnonzero(kind)[np.sort(np.argsort(key[kind])[:n])] for kind, n in ((is_positive, 4), (~is_positive, 12))
    ]
    sample = target(roi, bbox, label, seed=3, n_sample=16)
    np.testing.assert_array_equal(sample.sample_roi, candidates[np.concatenate(expected)])
    other = target(roi, bbox, label, seed=4, n_sample=16)
    assert (sample.sample_roi != other.sample_roi).any()


@pytest.mark.parametrize("n_positive", [1, 4, 9])
def test_one_key_per_candidate_in_every_case(n_positive):
    roi, bbox, label = many(n_positive, 9 - n_positive)
    for arrays, n in (((roi, bbox, label), 9), ((roi, NONE, NO_LABEL), 8), ((NONE, bbox, label), 1)):
        rng, after = np.random.default_rng(1), np.random.default_rng(1)
        after.random(n, dtype=np.float32)
        ProposalTargetCreator(n_sample=4)(*arrays, rng)
        assert rng.bit_generator.state == after.bit_generator.state
