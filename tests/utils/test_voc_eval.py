"""The VOC metric against numbers worked out by hand and against a slow copy of the devkit's rules.

n boxes of an image. A box is (y_min, x_min, y_max, x_max), one pixel higher and wider than its numbers say.
"""

import time
from itertools import pairwise

import numpy as np
import pytest

from utils.voc_eval import eval_detection_voc

NO_BOX = np.zeros((0, 4), np.float32)
OBJECT = [10, 20, 19, 59]  # 10 x 40 = 400 inclusive pixels
MISS = [100, 200, 140, 230]


def ap_of(preds, gts, **kwargs):
    """AP of class 0 from lists, one an image, of (box, score) and of (box, difficult)."""
    result = eval_detection_voc(
        [np.array([box for box, _ in pred], np.float32).reshape(-1, 4) for pred in preds],  # (n, 4)
        [np.zeros(len(pred), np.int32) for pred in preds],
        [np.array([score for _, score in pred], np.float32) for pred in preds],
        [np.array([box for box, _ in gt], np.float32).reshape(-1, 4) for gt in gts],  # (n, 4)
        [np.zeros(len(gt), np.int32) for gt in gts],
        [np.array([difficult for _, difficult in gt], bool) for gt in gts],
        **kwargs,
    )
    return result["ap"][0]


def test_area_and_eleven_points_by_hand():
    # By score: hit, miss, hit, miss, with 4 objects: recall 1/4 1/4 2/4 2/4, precision 1 1/2 2/3 1/2.
    other, far = [50, 60, 70, 66], [80, 5, 99, 17]
    preds = [[(OBJECT, 0.9), (MISS, 0.7)], [(MISS, 0.2), (other, 0.5)]]
    gts = [[(OBJECT, False), (far, False)], [(other, False), (far, False)]]
    assert ap_of(preds, gts) == pytest.approx(1 / 4 * 1 + 1 / 4 * 2 / 3)
    # Recalls 0, 0.1, 0.2 reach precision 1; 0.3, 0.4, 0.5 reach 2/3; the other five are never reached.
    assert ap_of(preds, gts, use_07_metric=True) == pytest.approx((3 * 1 + 3 * 2 / 3) / 11)


def test_area_counts_the_best_precision_at_each_recall_or_beyond():
    # Miss, hit, hit with 2 objects: precision 0, 1/2, 2/3, so that 2/3 holds from recall 0 to 1.
    other = [50, 60, 70, 66]
    preds, gts = [[(MISS, 0.9), (OBJECT, 0.8), (other, 0.7)]], [[(OBJECT, False), (other, False)]]
    assert ap_of(preds, gts) == pytest.approx(2 / 3)
    assert ap_of(preds, gts, use_07_metric=True) == pytest.approx(2 / 3)


def test_recall_of_exactly_three_tenths_falls_short_as_in_the_devkit():
    # 3 of 10 objects: the devkit's fourth point is 3 * 0.1 = 0.30000000000000004, and only three are reached.
    boxes = [[0, 30 * i, 9, 30 * i + 9] for i in range(10)]
    preds, gts = [[(box, 0.9) for box in boxes[:3]]], [[(box, False) for box in boxes]]
    assert ap_of(preds, gts, use_07_metric=True) == pytest.approx(3 / 11)


def test_iou_counts_inclusive_pixels():
    # 1 x 2 of 1 x 4 pixels is 0.5; without the one more, both boxes are lines without area.
    assert ap_of([[([7, 3, 7, 4], 0.9)]], [[([7, 3, 7, 6], False)]]) == 1
    # 5 x 10 of 10 x 10 pixels is 0.5; edge to edge it is 4 x 9 of 9 x 9, 0.44.
    assert ap_of([[([0, 0, 4, 9], 0.9)]], [[([0, 0, 9, 9], False)]]) == 1


def test_iou_at_the_threshold_is_a_hit():
    half = [[([10, 20, 19, 39], 0.9)]]  # 200 of 400 pixels
    assert ap_of(half, [[(OBJECT, False)]], iou_thresh=0.5) == 1
    assert ap_of(half, [[(OBJECT, False)]], iou_thresh=0.501) == 0


def test_x_and_y_are_not_swapped():
    assert ap_of([[([20, 10, 59, 19], 0.9)]], [[(OBJECT, False)]]) == 0


def test_a_second_detection_of_an_object_is_a_false_positive():
    near = [10, 20, 19, 57]
    # The better box comes second, finds the object taken; the third detection is right: 1, 1/2, 2/3.
    other = [50, 60, 70, 66]
    preds = [[(OBJECT, 0.6), (near, 0.8), (other, 0.4)]]
    assert ap_of(preds, [[(OBJECT, False), (other, False)]]) == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)


def test_a_detection_claims_its_best_object_only():
    # The second detection overlaps the wide object by 0.75 but the taken one by 1: no second choice.
    wide = [10, 20, 19, 72]
    preds = [[(OBJECT, 0.9), (OBJECT, 0.8)]]
    assert ap_of(preds, [[(wide, False), (OBJECT, False)]]) == pytest.approx(1 / 2)
    # Only the difficulty of the better one matters, wherever it stands.
    assert ap_of([[(OBJECT, 0.9)]], [[(wide, True), (OBJECT, False)]]) == 1
    assert ap_of([[(OBJECT, 0.9)]], [[(OBJECT, True), (wide, False)]]) == 0


def test_difficult_objects_count_neither_way():
    hard, easy = [50, 60, 70, 66], OBJECT
    gts = [[(hard, True), (easy, False)]]
    # Both detections of the difficult object vanish, the one that follows has precision 1.
    assert ap_of([[(hard, 0.9), (hard, 0.8), (easy, 0.3)]], gts) == 1
    # The same detections where the object is not difficult: hit, miss, hit.
    preds, plain = [[(hard, 0.9), (hard, 0.8), (easy, 0.3)]], [[(hard, False), (easy, False)]]
    assert ap_of(preds, plain) == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)


def test_objects_of_another_image_or_class_are_not_seen():
    assert ap_of([[(OBJECT, 0.9)], []], [[], [(OBJECT, False)]]) == 0
    result = eval_detection_voc([[OBJECT]], [[1]], [[0.9]], [[OBJECT]], [[0]])
    np.testing.assert_array_equal(result["ap"], [0, np.nan])  # class 1 was only detected
    assert result["map"] == 0


def test_ties_keep_the_order_given():
    assert ap_of([[(MISS, 0.5)], [(OBJECT, 0.5)]], [[], [(OBJECT, False)]]) == 1 / 2
    assert ap_of([[(OBJECT, 0.5)], [(MISS, 0.5)]], [[(OBJECT, False)], []]) == 1
    # Of two objects overlapped alike, the first is claimed.
    left, right, between = [0, 0, 9, 9], [0, 2, 9, 11], [[([0, 1, 9, 10], 0.9)]]
    assert ap_of(between, [[(left, False), (right, True)]]) == 1
    assert ap_of(between, [[(left, True), (right, False)]]) == 0


def test_classes_without_objects_are_left_out_of_the_mean():
    gt = [[OBJECT, MISS, MISS]], [[0, 2, 3]], [[False, False, True]]
    result = eval_detection_voc([[OBJECT, OBJECT]], [[0, 1]], [[0.6, 0.7]], *gt, n_class=6)
    # Class 0 is found, 1 only detected, 2 missed, 3 has a difficult object alone, 4 and 5 are unseen.
    np.testing.assert_array_equal(result["ap"], [1, np.nan, 0, np.nan, np.nan, np.nan])
    assert result["map"] == 1 / 2
    assert result["ap"].dtype == np.float64


@pytest.mark.parametrize("use_07_metric", [False, True])
def test_nothing_detected_is_zero_and_nothing_there_is_nan(use_07_metric):
    none = [NO_BOX, NO_BOX], [np.zeros(0, int)] * 2, [np.zeros(0)] * 2
    result = eval_detection_voc(*none, [[OBJECT], NO_BOX], [[1], []], use_07_metric=use_07_metric)
    np.testing.assert_array_equal(result["ap"], [np.nan, 0])
    for empty in (eval_detection_voc(*none, *none[:2]), eval_detection_voc([], [], [], [], [])):
        assert empty["ap"].shape == (0,)
        assert np.isnan(empty["map"])


def test_images_without_boxes_between_others():
    assert ap_of([[], [(OBJECT, 0.9)], []], [[], [(OBJECT, False)], []]) == 1
    result = eval_detection_voc([[], [OBJECT]], [[], [0]], [[], [0.9]], [[], [OBJECT]], [[], [0]])
    assert result["map"] == 1  # an empty list has no (0, 4) shape


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pred_scores": [[0.9, 0.8]]}, r"pred_scores\[0\] has shape \(2,\)"),
        ({"gt_labels": [[0], [0]]}, "gt_labels has 2 images instead of 1"),
        ({"gt_bboxes": []}, "pred_bboxes has 1 images and gt_bboxes 0"),
        ({"gt_bboxes": [[OBJECT[:3]]]}, r"gt_bboxes\[0\] has shape \(1, 3\)"),
        ({"gt_labels": [[4]], "n_class": 4}, "labels range from 0 to 4: they must be in 0 to 3"),
        ({"pred_labels": [[-1]]}, "labels range from -1"),
    ],
)
def test_input_that_does_not_fit_is_named(change, words):
    good = {"pred_bboxes": [[OBJECT]], "pred_labels": [[0]], "pred_scores": [[0.9]]}
    good |= {"gt_bboxes": [[OBJECT]], "gt_labels": [[0]]}
    with pytest.raises(ValueError, match=words):
        eval_detection_voc(**good | change)


def test_input_is_not_changed():
    pred, gt = np.array([OBJECT], np.float64), np.array([OBJECT], np.float64)
    eval_detection_voc([pred], [[0]], [[0.9]], [gt], [[0]])
    np.testing.assert_array_equal([pred[0], gt[0]], [OBJECT, OBJECT])


def random_boxes(rng, n):
    corner = rng.uniform(0, 30, (n, 2))
    return np.concatenate([corner, corner + rng.uniform(5, 50, (n, 2))], axis=1).astype(np.float32)


def random_data_set(rng, n_image, n_pred, n_gt, n_class):
    """Objects, and detections of which half are objects moved a little; few scores, so many ties."""
    data = [[], [], [], [], [], []]
    for _ in range(n_image):
        gt = random_boxes(rng, rng.integers(n_gt + 1))
        gt_label = rng.integers(n_class, size=len(gt))
        pred = random_boxes(rng, rng.integers(n_pred + 1))
        pred_label = rng.integers(n_class, size=len(pred))
        if len(gt):
            copied = rng.integers(len(gt), size=len(pred) // 2)
            pred[: len(copied)] = gt[copied] + rng.normal(0, 3, (len(copied), 4))
            pred_label[: len(copied)] = gt_label[copied]
        score = rng.integers(1, 40, len(pred)) / 40
        image = (pred, pred_label, score, gt, gt_label, rng.random(len(gt)) < 0.2)
        for part, value in zip(data, image, strict=True):
            part.append(value)
    return data


def slow_iou(a, b):
    height = min(a[2], b[2]) - max(a[0], b[0]) + 1
    width = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if height <= 0 or width <= 0:
        return 0.0
    area = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
    return height * width / (sum(area) - height * width)


def slow_ap(data, label, iou_thresh, use_07_metric):
    """One class by the devkit's rules, one detection at a time."""
    detections, objects, n_object = [], [], 0
    for i, (bbox, pred_label, score, gt, gt_label, hard) in enumerate(zip(*data, strict=True)):
        detections += [(score[j], i, bbox[j].tolist()) for j in np.flatnonzero(pred_label == label)]
        objects.append([[gt[j].tolist(), hard[j], False] for j in np.flatnonzero(gt_label == label)])
        n_object += sum(not hard for _, hard, _ in objects[-1])
    if n_object == 0:
        return np.nan
    points, n_hit, n_false = [], 0, 0
    for _, i, bbox in sorted(detections, key=lambda d: -d[0]):
        best = max(objects[i], key=lambda o: slow_iou(bbox, o[0]), default=None)
        if best is None or slow_iou(bbox, best[0]) < iou_thresh:
            n_false += 1
        elif best[1]:
            continue
        elif best[2]:
            n_false += 1
        else:
            best[2] = True
            n_hit += 1
        points.append((n_hit / n_object, n_hit / (n_hit + n_false)))
    if use_07_metric:
        return sum(max((p for r, p in points if r >= 0.1 * k), default=0.0) for k in range(11)) / 11
    recalls = sorted({0.0, *(r for r, _ in points)})
    return sum((high - low) * max(p for r, p in points if r >= high) for low, high in pairwise(recalls))


@pytest.mark.parametrize("use_07_metric", [False, True])
@pytest.mark.parametrize("iou_thresh", [0.5, 0.7])
def test_agrees_with_the_slow_way(use_07_metric, iou_thresh):
    data = random_data_set(np.random.default_rng(7), n_image=60, n_pred=16, n_gt=10, n_class=4)
    want = np.array([slow_ap(data, label, iou_thresh, use_07_metric) for label in range(5)])
    assert ((want[:4] > 0.02) & (want[:4] < 0.9)).all()  # the data set is neither empty nor easy
    result = eval_detection_voc(*data, iou_thresh=iou_thresh, use_07_metric=use_07_metric, n_class=5)
    np.testing.assert_allclose(result["ap"], want, rtol=1e-12)
    assert result["map"] == pytest.approx(want[:4].mean())


def test_speed():
    # A tenth of VOC07 test with 100 detections an image; measured 0.05 s.
    rng = np.random.default_rng(0)
    n = 500
    preds = [random_boxes(rng, 100) for _ in range(n)], [rng.integers(20, size=100) for _ in range(n)]
    scores = [rng.random(100) for _ in range(n)]
    gts = [random_boxes(rng, 8) for _ in range(n)], [rng.integers(20, size=8) for _ in range(n)]
    start = time.process_time()
    eval_detection_voc(*preds, scores, *gts)
    assert time.process_time() - start < 1
