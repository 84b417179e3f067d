"""The COCO metric against figures worked out by hand, and its machinery against the VOC metric.

n boxes of an image. A box is (y_min, x_min, y_max, x_max), as high and wide as its differences say.
"""

import numpy as np
import pytest

from utils.coco_eval import SUMMARY, eval_detection_coco
from utils.voc_eval import eval_detection_voc

NO_BOX = np.zeros((0, 4), np.float32)
OBJECT = [10, 20, 20, 60]  # 10 x 40 = 400: small
OTHER = [50, 60, 70, 66]
MISS = [100, 200, 140, 230]
MEDIUM = [100, 10, 140, 70]  # 40 x 60 = 2400
LARGE = [200, 10, 300, 130]  # 100 x 120 = 12000


def score(preds, gts, **kwargs):
    """The result for class 0 from lists, one an image, of (box, score) and of (box, difficult)."""
    return eval_detection_coco(
        [np.array([box for box, _ in pred], np.float32).reshape(-1, 4) for pred in preds],  # (n, 4)
        [np.zeros(len(pred), np.int32) for pred in preds],
        [np.array([score for _, score in pred], np.float32) for pred in preds],
        [np.array([box for box, _ in gt], np.float32).reshape(-1, 4) for gt in gts],  # (n, 4)
        [np.zeros(len(gt), np.int32) for gt in gts],
        [np.array([difficult for _, difficult in gt], bool) for gt in gts],
        **kwargs,
    )


def columns(box, share):
    """The first columns of a box, a share of them: so large is their IoU with it."""
    return [*box[:3], box[1] + share * (box[3] - box[1])]


def test_all_found_is_one():
    result = score([[(OBJECT, 0.9), (MEDIUM, 0.8)], [(LARGE, 0.7)]], [[(OBJECT, 0), (MEDIUM, 0)], [(LARGE, 0)]])
    assert result["map"] == pytest.approx(1)
    assert result["ap"].dtype == np.float64
    assert tuple(result["summary"]) == SUMMARY
    want = dict.fromkeys(SUMMARY, 1.0) | {"AR1": 2 / 3}  # one detection an image finds two of three objects
    assert result["summary"] == pytest.approx(want)
    assert all(type(value) is float for value in result["summary"].values())


def test_iou_decides_at_how_many_thresholds_a_detection_counts():
    gts = [[(OBJECT, False)]]
    result = score([[(columns(OBJECT, 0.725), 0.9)]], gts)  # 0.5 0.55 0.6 0.65 0.7 of ten
    assert result["ap"] == pytest.approx([0.5])
    figures = result["summary"]
    assert [figures[name] for name in ("AP", "AP50", "AP75", "AR100")] == pytest.approx([0.5, 1, 0, 0.5])
    result = score([[(columns(OBJECT, 0.75), 0.9)]], gts)  # 0.75 itself counts
    assert result["map"] == pytest.approx(0.6)
    assert result["summary"]["AP75"] == pytest.approx(1)
    assert score([[(columns(OBJECT, 0.475), 0.9)]], gts)["map"] == 0


def test_boxes_are_continuous():
    # 4 x 9 of 9 x 9 is 0.44; in inclusive pixels it were 5 x 10 of 10 x 10, 0.5.
    assert score([[([0, 0, 4, 9], 0.9)]], [[([0, 0, 9, 9], False)]])["map"] == 0


def test_x_and_y_are_not_swapped():
    assert score([[([20, 10, 60, 20], 0.9)]], [[(OBJECT, False)]])["map"] == 0
    # A corner that were swapped with its size, or a maximum taken for a size, would change this IoU of 4 / 5.
    assert score([[([3, 40, 7, 60], 0.9)]], [[([3, 40, 8, 60], False)]])["map"] == pytest.approx(0.7)


def test_precision_at_the_101_recalls():
    # Hit, miss, hit with 2 objects: precision 1 at the 51 recalls up to 0.5, 2/3 at the 50 others.
    preds, gts = [[(OBJECT, 0.9), (MISS, 0.8)], [(OTHER, 0.7)]], [[(OBJECT, False)], [(OTHER, False)]]
    assert score(preds, gts)["map"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_a_second_detection_takes_the_next_object_or_is_false():
    wide = [10, 20, 20, 72]  # overlaps OBJECT by 40 of 52, 0.77
    preds = [[(OBJECT, 0.9), (OBJECT, 0.8)]]
    # Unlike in the VOC metric the second one takes what is free, at six thresholds; at the others: hit, miss.
    assert score(preds, [[(wide, False), (OBJECT, False)]])["map"] == pytest.approx((6 * 1 + 4 * 51 / 101) / 10)
    # Of one object it is false: miss behind the last hit of another image.
    preds, gts = [[(OBJECT, 0.9), (OBJECT, 0.8)], [(OTHER, 0.7)]], [[(OBJECT, False)], [(OTHER, False)]]
    assert score(preds, gts)["map"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_areas_by_hand():
    # The medium object is found up to IoU 0.65 (0.675), the small one perfectly but with less score, the large not.
    result = score([[(columns(MEDIUM, 0.675), 0.9), (OBJECT, 0.5)]], [[(OBJECT, 0), (MEDIUM, 0), (LARGE, 0)]])
    # In its own range the small detection is all there is, for the medium one lies outside, hit or not.
    # All areas, four thresholds: hit, hit: 67 recalls up to 2/3; six: miss, hit: precision 1/2 at 34 up to 1/3.
    want = {"AP_small": 1, "AP_medium": 0.4, "AP_large": 0, "AR_small": 1, "AR_medium": 0.4, "AR_large": 0}
    want |= {"AP": (4 * 67 + 6 * 34 / 2) / 1010, "AP50": 67 / 101, "AP75": 34 / 2 / 101}
    want |= {"AR1": 4 / 10 / 3, "AR10": (4 * 2 + 6 * 1) / 30, "AR100": (4 * 2 + 6 * 1) / 30}
    assert result["summary"] == pytest.approx(want)
    assert result["map"] == pytest.approx(want["AP"])


def test_area_limits_belong_to_both_sides():
    for side, names in ((32, ("AP_small", "AP_medium")), (96, ("AP_medium", "AP_large"))):
        box = [5, 9, 5 + side / 2, 9 + side * 2]
        figures = score([[(box, 0.9)]], [[(box, False)]])["summary"]
        assert {name for name in SUMMARY[3:6] if figures[name] == pytest.approx(1)} == set(names)
        assert sum(np.isnan(figures[name]) for name in SUMMARY[3:6]) == 1
        assert sum(np.isnan(figures[name]) for name in SUMMARY[9:]) == 1


def test_recall_by_detections_an_image():
    boxes = [[0, 30 * i, 5, 30 * i + 9] for i in range(12)]
    preds, gts = [[(box, 0.9) for box in boxes], []], [[(box, False) for box in boxes], []]
    figures = score(preds, gts)["summary"]
    assert [figures[name] for name in ("AR1", "AR10", "AR100")] == pytest.approx([1 / 12, 10 / 12, 1])


def test_only_the_best_100_of_an_image_and_class_count():
    misses = [([500, 30 * i, 505, 30 * i + 9], 0.9) for i in range(100)]
    gts = [[(OBJECT, False)]]
    assert score([[*misses[:99], (OBJECT, 0.1)]], gts)["map"] == pytest.approx(0.01)
    assert score([[*misses, (OBJECT, 0.1)]], gts)["map"] == 0


def test_difficult_objects_count_neither_way():
    preds, gts = [[(OTHER, 0.9), (OTHER, 0.8), (OBJECT, 0.3)]], [[(OTHER, True), (OBJECT, False)]]
    assert score(preds, gts)["map"] == pytest.approx(1)  # both detections of the difficult object vanish
    plain = [[(OTHER, False), (OBJECT, False)]]
    assert score(preds, plain)["map"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert score([[(OBJECT, 0.9)]], gts)["summary"]["AR100"] == pytest.approx(1)  # not found, not missed


def test_overlap_with_a_difficult_object_is_relative_to_the_detection():
    inside, half = [210, 20, 220, 50], [290, 20, 310, 50]  # 300 of 12000; half of its area lies in LARGE
    gts = [[(LARGE, True), (OBJECT, False)]]
    assert score([[(inside, 0.9), (OBJECT, 0.8)]], gts)["map"] == pytest.approx(1)
    # At 0.5 it is taken, at the other nine thresholds false: miss, hit.
    assert score([[(half, 0.9), (OBJECT, 0.8)]], gts)["map"] == pytest.approx((1 + 9 / 2) / 10)


def test_a_difficult_object_is_the_last_choice():
    around = [5, 10, 40, 90]  # OBJECT and the detection lie inside: the difficult one overlaps it fully
    preds = [[(columns(OBJECT, 0.725), 0.9)]]
    # At five thresholds a hit; at the others it goes to the difficult one and is not false.
    result = score([[*preds[0], (OTHER, 0.8)]], [[(around, True), (OBJECT, False), (OTHER, False)]])
    assert result["map"] == pytest.approx((5 + 5 * 51 / 101) / 10)


def test_objects_of_another_image_or_class_are_not_seen():
    assert score([[(OBJECT, 0.9)], []], [[], [(OBJECT, False)]])["map"] == 0
    result = eval_detection_coco([[OBJECT]], [[1]], [[0.9]], [[OBJECT]], [[0]])
    np.testing.assert_array_equal(result["ap"], [0, np.nan])  # class 1 was only detected


def test_classes_without_objects_are_left_out_of_the_mean():
    gt = [[OBJECT, MISS, MISS]], [[0, 2, 3]], [[False, False, True]]
    result = eval_detection_coco([[OBJECT, OBJECT]], [[0, 1]], [[0.6, 0.7]], *gt, n_class=6)
    # Class 0 is found, 1 only detected, 2 missed, 3 has a difficult object alone, 4 and 5 are unseen.
    np.testing.assert_allclose(result["ap"], [1, np.nan, 0, np.nan, np.nan, np.nan], rtol=1e-12)
    assert result["map"] == pytest.approx(1 / 2)
    assert result["summary"]["AP"] == pytest.approx(1 / 2)


@pytest.mark.filterwarnings("error")
def test_nothing_detected_is_zero_and_nothing_there_is_nan():
    none = [NO_BOX, NO_BOX], [np.zeros(0, int)] * 2, [np.zeros(0)] * 2
    result = eval_detection_coco(*none, [[OBJECT], NO_BOX], [[1], []])
    np.testing.assert_array_equal(result["ap"], [np.nan, 0])
    assert result["map"] == 0
    zero = {"AP", "AP50", "AP75", "AP_small", "AR1", "AR10", "AR100", "AR_small"}
    for name, figure in result["summary"].items():
        assert figure == 0 if name in zero else np.isnan(figure), name
    for empty, n_class in (
        (eval_detection_coco(*none, *none[:2]), 0),
        (eval_detection_coco(*none, *none[:2], n_class=2), 2),
        (eval_detection_coco([], [], [], [], []), 0),
        (eval_detection_coco([], [], [], [], [], n_class=3), 3),
        (eval_detection_coco([[OBJECT]], [[0]], [[0.9]], [[]], [[]]), 1),
        (eval_detection_coco([[OBJECT]], [[0]], [[0.9]], [[OBJECT]], [[0]], [[True]]), 1),
    ):
        assert empty["ap"].shape == (n_class,)
        assert np.isnan(empty["ap"]).all()
        assert np.isnan(empty["map"])
        assert np.isnan(list(empty["summary"].values())).all()


def test_images_without_boxes_between_others():
    assert score([[], [(OBJECT, 0.9)], []], [[], [(OBJECT, False)], []])["map"] == pytest.approx(1)
    result = eval_detection_coco([[], [OBJECT]], [[], [0]], [[], [0.9]], [[], [OBJECT]], [[], [0]])
    assert result["map"] == pytest.approx(1)  # an empty list has no (0, 4) shape


def test_nothing_is_printed(capsys):
    score([[(OBJECT, 0.9)]], [[(OBJECT, False)]])
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pred_scores": [[0.9, 0.8]]}, r"pred_scores\[0\] has shape \(2,\) instead of \(1,\)"),
        ({"gt_labels": [[0], [0]]}, "gt_labels has 2 images instead of 1"),
        ({"gt_difficults": []}, "gt_difficults has 0 images instead of 1"),
        ({"gt_bboxes": []}, "pred_bboxes has 1 images and gt_bboxes 0"),
        ({"gt_bboxes": [[OBJECT[:3]]]}, r"gt_bboxes\[0\] has shape \(1, 3\)"),
        ({"gt_labels": [[4]], "n_class": 4}, "labels run from 0 to 4: they must be 0 to 3"),
        ({"pred_labels": [[-1]]}, "labels run from -1"),
    ],
)
def test_input_that_does_not_fit_is_named(change, words):
    good = {"pred_bboxes": [[OBJECT]], "pred_labels": [[0]], "pred_scores": [[0.9]]}
    good |= {"gt_bboxes": [[OBJECT]], "gt_labels": [[0]], "gt_difficults": [[False]]}
    with pytest.raises(ValueError, match=words):
        eval_detection_coco(**good | change)


def random_data_set(rng, n_image, n_class):
    """Objects in a grid, so that none overlap; detections of some, several times, more or less well; few scores."""
    data = [[], [], [], [], []]
    for _ in range(n_image):
        cell = rng.choice(12, size=rng.integers(7), replace=False)
        corner = np.stack([cell // 4 * 40, cell % 4 * 70], axis=1) + rng.integers(0, 10, (len(cell), 2))
        gt = np.hstack([corner, corner + rng.integers(12, (28, 58), (len(cell), 2))]).astype(np.float32)
        gt_label = rng.integers(n_class, size=len(gt))
        which = rng.integers(len(gt), size=3 * len(gt)) if len(gt) else np.zeros(0, int)
        pred = gt[which] + rng.normal(0, 3, (len(which), 4)).round(1)
        away = [[200, 30, 220, 90]] * rng.integers(3)
        pred = np.vstack([pred, np.reshape(away, (-1, 4))]).astype(np.float32)  # (n, 4)
        pred_label = np.concatenate([gt_label[which], rng.integers(n_class, size=len(away))])
        wrong = rng.random(len(pred)) < 0.1
        pred_label[wrong] = rng.integers(n_class, size=wrong.sum())
        image = pred, pred_label, rng.integers(1, 15, len(pred)) / 15, gt, gt_label
        for part, value in zip(data, image, strict=True):
            part.append(value)
    return data


def test_at_the_eleven_recalls_of_one_iou_it_is_the_voc_metric(monkeypatch):
    def voc07(self):
        """Parameters under which COCO's rules are those of VOC07 for objects that do not overlap."""
        self.imgIds, self.catIds, self.useCats = [], [], 1
        self.iouThrs, self.recThrs = np.array([0.5]), np.arange(11) * 0.1
        self.maxDets, self.areaRng, self.areaRngLbl = [1, 10, 10000], [[0, 1e10]], ["all"]

    data = random_data_set(np.random.default_rng(5), n_image=40, n_class=4)
    voc = eval_detection_voc(*data, use_07_metric=True, n_class=5)
    assert ((voc["ap"][:4] > 0.2) & (voc["ap"][:4] < 0.9)).all()  # the data set is neither empty nor easy
    monkeypatch.setattr("pycocotools.cocoeval.Params.setDetParams", voc07)
    inclusive = [0, 0, 1, 1]
    pred_bboxes, gt_bboxes = ([bbox + np.float32(inclusive) for bbox in data[i]] for i in (0, 3))
    coco = eval_detection_coco(pred_bboxes, data[1], data[2], gt_bboxes, data[4], n_class=5)
    np.testing.assert_allclose(coco["ap"], voc["ap"], rtol=1e-12)
    assert coco["map"] == pytest.approx(voc["map"], rel=1e-12)


def test_input_is_not_changed():
    pred, gt = np.array([OBJECT], np.float64), np.array([OBJECT], np.float64)
    eval_detection_coco([pred], [[0]], [[0.9]], [gt], [[0]])
    np.testing.assert_array_equal([pred[0], gt[0]], [OBJECT, OBJECT])
