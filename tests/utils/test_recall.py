"""The recall of proposals by hand and against a slow count.

A box is (y_min, x_min, y_max, x_max), as high and wide as its differences say.
"""

import numpy as np
import pytest

from utils.recall import COUNTS, IOU_THRESHS, proposal_recall

NO_BOX = np.zeros((0, 4), np.float32)
OBJECT = [10, 20, 20, 60]  # 10 x 40 = 400
MISS = [100, 200, 140, 230]


def test_by_hand():
    # Image 0: the second proposal has 30 of 40 columns (0.75), the third is the object. Image 1: 7 of 10 rows.
    rois = [[MISS, [10, 20, 20, 50], OBJECT], [[10, 20, 17, 60]]]
    result = proposal_recall(rois, [[OBJECT, [300, 5, 310, 9]], [OBJECT]], None, (1, 2, 3, 99), (0.5, 0.72, 0.9))
    want = np.array([[1, 0, 0], [2, 1, 0], [2, 1, 1], [2, 1, 1]]) / 3
    np.testing.assert_allclose(result["recall"], want, rtol=1e-15)
    np.testing.assert_allclose(result["average"], np.array([1, 3, 4, 4]) / 9, rtol=1e-15)
    assert result["n_object"] == 3
    assert type(result["n_object"]) is int


def test_boxes_are_continuous():
    # 4 x 9 of 9 x 9 is 0.44; in inclusive pixels it were 5 x 10 of 10 x 10, 0.5.
    near = [[[0, 0, 4, 9]]], [[[0, 0, 9, 9]]]
    assert proposal_recall(*near, None, [1], [0.5, 0.44])["recall"].tolist() == [[0, 1]]


def test_x_and_y_are_not_swapped():
    assert proposal_recall([[[20, 10, 60, 20]]], [[OBJECT]], None, [1], [0.1])["recall"] == 0


def test_one_proposal_may_find_several_objects():
    others = [[10, 20, 20, 50], [10, 30, 20, 60], [10, 20, 15, 60], MISS]
    assert proposal_recall([[OBJECT]], [others], None, [1], [0.5, 0.75])["recall"].tolist() == [[0.75, 0.5]]


@pytest.mark.parametrize("k", range(1, 21))
def test_iou_right_at_a_threshold_counts(k):
    rois, gts = [[[7, 100, 14, 100 + k]]], [[[7, 100, 14, 120]]]  # k of 20 columns
    assert proposal_recall(rois, gts, None, [1], [k * 0.05, k / 20])["recall"].tolist() == [[1, 1]]
    beyond = min(1, k / 20 + 1e-6)
    assert proposal_recall(rois, gts, None, [1], [beyond])["recall"] == (beyond == 1)


def test_the_test_above_meets_thresholds_that_are_a_hair_too_large():
    assert sum(k * 0.05 > k / 20 for k in range(1, 21)) > 3


def test_default_thresholds_are_the_decimal_numbers():
    rois, gts = [[[7, 100, 14, 112]]], [[[7, 100, 14, 120]]]  # 0.6
    result = proposal_recall(rois, gts)
    assert result["recall"].shape == (5, 10) == (len(COUNTS), len(IOU_THRESHS))
    assert result["recall"].dtype == np.float64
    assert (result["recall"] == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]).all()
    np.testing.assert_allclose(IOU_THRESHS, np.linspace(0.5, 0.95, 10))


def test_difficult_objects_are_left_out():
    gts, rois = [[OBJECT, MISS], [MISS]], [[OBJECT], [OBJECT]]
    result = proposal_recall(rois, gts, [[False, True], [False]], [1], [0.5])
    assert (result["n_object"], result["recall"]) == (2, 0.5)
    result = proposal_recall(rois, gts, [[True, False], [True]], [1], [0.5])
    assert (result["n_object"], result["recall"]) == (1, 0)


def test_images_without_proposals_or_objects_between_others():
    rois = [NO_BOX, [OBJECT], [], [OBJECT], [MISS]]
    gts = [[OBJECT], NO_BOX, [OBJECT], [OBJECT], []]
    result = proposal_recall(rois, gts, None, [1, 300], [0.5])
    assert result["n_object"] == 3
    np.testing.assert_array_equal(result["recall"], np.full((2, 1), 1 / 3))


@pytest.mark.filterwarnings("error")
def test_no_object_at_all_is_nan_and_no_proposal_is_zero():
    for empty in (
        proposal_recall([], []),
        proposal_recall([[OBJECT]], [NO_BOX]),
        proposal_recall([[OBJECT]], [[OBJECT]], [[True]]),
    ):
        assert empty["recall"].shape == (5, 10)
        assert np.isnan(empty["recall"]).all()
        assert np.isnan(empty["average"]).all()
        assert empty["average"].shape == (5,)
        assert empty["n_object"] == 0
    assert (proposal_recall([NO_BOX], [[OBJECT]])["recall"] == 0).all()


@pytest.mark.filterwarnings("error")
def test_boxes_without_area_overlap_nothing():
    line = [10, 20, 10, 60]
    result = proposal_recall([[line, line]], [[line, OBJECT]], None, [2], [1e-9])
    assert (result["recall"], result["n_object"]) == (0, 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rois": []}, "rois has 0 images, gt_bboxes 1 and gt_difficults 1"),
        ({"gt_difficults": []}, "gt_bboxes 1 and gt_difficults 0"),
        ({"gt_difficults": [[True, False]]}, r"gt_difficults\[0\] has 2 entries instead of 1"),
        ({"rois": [[OBJECT[:3]]]}, r"rois\[0\] has shape \(1, 3\)"),
        ({"gt_bboxes": [[[*OBJECT, 0]]]}, r"gt_bboxes\[0\] has shape \(1, 5\)"),
        ({"counts": [100, 0]}, "counts has 0"),
        ({"iou_threshs": [0.5, 0]}, "each must be above 0"),
        ({"iou_threshs": [50]}, "up to 1"),
    ],
)
def test_input_that_does_not_fit_is_named(change, words):
    good = {"rois": [[OBJECT]], "gt_bboxes": [[OBJECT]], "gt_difficults": [[False]]}
    with pytest.raises(ValueError, match=words):
        proposal_recall(**good | change)


def random_boxes(rng, n):
    corner = rng.integers(0, (40, 90), (n, 2))
    return np.concatenate([corner, corner + rng.integers(2, (30, 70), (n, 2))], axis=1).astype(np.float32)


def slow_iou(a, b):
    height, width = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if height <= 0 or width <= 0:
        return 0.0
    return height * width / (sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)) - height * width)


def test_agrees_with_three_loops_and_is_monotonous():
    rng = np.random.default_rng(3)
    counts, threshs = (30, 1, 4, 11, 500), (0.5, 0.25, 0.6, 0.8)  # in no order
    gts = [random_boxes(rng, rng.integers(6)) for _ in range(25)]
    moved = [gt + rng.integers(-5, 6, gt.shape) for gt in gts]
    rois = [rng.permutation(np.vstack([random_boxes(rng, rng.integers(40)), gt])) for gt in moved]
    rois[3], rois[9] = NO_BOX, rois[9][:1]
    hard = [rng.random(len(gt)) < 0.3 for gt in gts]
    found, n_object = np.zeros((5, 4)), 0
    for roi, gt, difficult in zip(rois, gts, hard, strict=True):
        for box in gt[~difficult].tolist():
            n_object += 1
            for i, count in enumerate(counts):
                best = max((slow_iou(one, box) for one in roi[:count].tolist()), default=0.0)
                found[i] += [best >= thresh for thresh in threshs]
    result = proposal_recall(rois, gts, hard, counts, threshs)
    assert result["n_object"] == n_object
    np.testing.assert_allclose(result["recall"], found / n_object, rtol=1e-12)
    np.testing.assert_allclose(result["average"], found.mean(axis=1) / n_object, rtol=1e-12)
    ordered = result["recall"][[1, 2, 3, 0, 4]][:, [1, 0, 2, 3]]
    assert (np.diff(ordered, axis=0) >= 0).all()
    assert (np.diff(ordered, axis=1) <= 0).all()
    assert len(np.unique(ordered)) > 10  # the data are neither empty nor easy


def test_input_is_not_changed():
    roi, gt = np.array([OBJECT, MISS], np.float64), np.array([OBJECT], np.float64)
    proposal_recall([roi], [gt])
    np.testing.assert_array_equal([*roi, *gt], [OBJECT, MISS, OBJECT])
