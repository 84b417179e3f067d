"""Evaluation of a model, the COCO metric by hand, and the recall of proposals by hand and against loops.

n boxes of an image. A box is (y_min, x_min, y_max, x_max), as high and wide as its differences say.
"""

import json
import os
from typing import NamedTuple

import numpy as np
import pytest
import torch

from model.utils.proposal_creator import ProposalCreator
from utils import metrics
from utils.coco_eval import (
    COCO_SUMMARY,
    COUNTS,
    IOU_THRESHS,
    eval_detection_coco,
    evaluate_proposals,
    format_recall,
    proposal_recall,
)
from utils.metrics import Evaluation, evaluate, format_heading, format_results, worker_count
from utils.voc_eval import eval_detection_voc

GT = [  # bbox, label, difficult of three images
    ([[0, 0, 10, 20], [5, 30, 25, 40]], [0, 1], [False, False]),
    ([[2, 3, 12, 13], [20, 20, 30, 50]], [0, 0], [False, True]),
    ([], [], []),
]


class Sample(NamedTuple):
    img: np.ndarray
    rng: None = None  # default collation fails on it
    roi: None = None


class Dataset:
    classes = ("cat", "dog", "cow")

    def __init__(self, indices=(0, 1, 2)):
        self.indices = indices
        self.bboxes = [np.array(GT[i][0], np.float32).reshape(-1, 4) for i in indices]
        self.labels = [np.array(GT[i][1], int) for i in indices]
        self.difficults = [np.array(GT[i][2], bool) for i in indices]

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, i):
        return Sample(np.full((40, 60, 3), self.indices[i], np.uint8))


@pytest.fixture
def dataset():
    return Dataset()


class Oracle:
    """Finds the objects, and a false one in the last image, with the lowest score."""

    device = torch.device("cpu")

    def __init__(self):
        self.calls = []

    def predict(self, imgs, **options):
        (img,) = imgs
        bbox, label, _ = GT[img[0, 0, 0]]
        self.calls.append((int(img[0, 0, 0]), options, torch.is_autocast_enabled("cpu")))
        bbox, label = (bbox, label) if bbox else ([[0, 0, 9, 9]], [1])
        return [np.array(bbox, np.float32)], [np.array(label)], [np.full(len(bbox), 0.9 if len(bbox) > 1 else 0.1)]


def test_what_is_found_and_counted(dataset):
    model = Oracle()
    result = evaluate(model, dataset, score_thresh=0.2)
    assert result.ap == {"cat": 1, "dog": 1, "cow": None}
    assert result.map == 1
    assert result.n_object == {"cat": 2, "dog": 1, "cow": 0}  # without the difficult one
    assert result.n_detection == {"cat": 3, "dog": 2, "cow": 0}
    assert model.calls == [(i, {"score_thresh": 0.2}, False) for i in range(3)]
    json.dumps(result, allow_nan=False)


def test_a_number_without_a_class_is_not_shown(dataset):
    dataset.classes = ("cat", "dog", "N/A", "N/A", "cow")
    result = evaluate(Oracle(), dataset)
    assert [list(column) for column in (result.ap, result.n_object, result.n_detection)] == [["cat", "dog", "cow"]] * 3


def test_limit(dataset):
    model = Oracle()
    result = evaluate(model, dataset, limit=1)
    assert [index for index, *_ in model.calls] == [0]
    assert result.n_object == {"cat": 1, "dog": 1, "cow": 0}
    evaluate(model, dataset, limit=99)
    assert len(model.calls) == 1 + 3


def test_metric(dataset):
    class Half(Oracle):
        def predict(self, imgs, **options):
            return tuple([value[0][:1]] for value in super().predict(imgs, **options))

    # two images with two objects, one difficult: of "cat" all that counts is found, of "dog" nothing before a false one
    assert evaluate(Half(), dataset, "voc").ap == {"cat": 1, "dog": 0, "cow": None}
    dataset.difficults[1][1] = False
    assert evaluate(Half(), dataset, "voc").ap["cat"] == pytest.approx(2 / 3)
    assert evaluate(Half(), dataset, "voc07").ap["cat"] == pytest.approx(7 / 11)  # recalls 0 ... 0.6


def test_processes_share_the_images(dataset, monkeypatch):
    """Two processes in turn, the second of which gets what the first detected."""
    whole, parts, models = evaluate(Oracle(), dataset), [], [Oracle(), Oracle()]

    def gather(values):
        parts.append(values)
        return [parts[i % 2][i // 2] for i in range(3)] if len(parts) == 2 else values

    monkeypatch.setattr(metrics, "world_size", lambda: 2)
    monkeypatch.setattr(metrics, "gather_interleaved", gather)
    for rank, model in enumerate(models):
        monkeypatch.setattr(metrics, "rank", lambda rank=rank: rank)
        result = evaluate(model, dataset)
    assert [[index for index, *_ in model.calls] for model in models] == [[0, 2], [1]]
    assert result == whole


def test_workers_bring_the_same(dataset):
    assert evaluate(Oracle(), dataset, num_workers=2) == evaluate(Oracle(), dataset)


def test_torchs_random_state_is_left_alone(dataset):
    before = torch.get_rng_state()
    evaluate(Oracle(), dataset)
    assert torch.equal(torch.get_rng_state(), before)


def test_autocast(dataset):
    model = Oracle()
    evaluate(model, dataset, dtype=torch.bfloat16)
    assert all(autocast for *_, autocast in model.calls)


class Blind(Oracle):
    """Finds nothing."""

    def predict(self, imgs, **options):
        return [np.zeros((0, 4), np.float32)], [np.zeros(0, int)], [np.zeros(0, np.float32)]


@pytest.mark.parametrize("metric", ["voc07", "voc", "coco"])
def test_no_detection_is_zero_and_no_object_is_none(dataset, metric):
    result = evaluate(Blind(), dataset, metric)
    assert (result.map, result.ap) == (0, {"cat": 0, "dog": 0, "cow": None})
    assert set(result.n_detection.values()) == {0}
    result = evaluate(Oracle(), Dataset([2]), metric)
    assert (result.map, result.ap) == (None, {"cat": None, "dog": None, "cow": None})
    json.dumps(result, allow_nan=False)


class Shifted(Oracle):
    """Finds the objects with three tenths cut off, and a little more: an IoU of 0.69."""

    def predict(self, imgs, **options):
        (bbox,), label, score = super().predict(imgs)
        bbox[:, 2] -= 0.31 * (bbox[:, 2] - bbox[:, 0])
        return [bbox], label, score


def test_coco(dataset):
    result = evaluate(Oracle(), dataset, "coco")
    assert [result.ap["cat"], result.ap["dog"], result.map, result.summary["AP"]] == pytest.approx([1] * 4)
    assert result.ap["cow"] is None
    assert result.summary["AP_large"] is None
    assert len(result.summary) == 12
    shifted = evaluate(Shifted(), dataset, "coco")
    assert shifted.ap["dog"] == pytest.approx(0.4)  # at 0.5, 0.55, 0.6, 0.65
    assert shifted.summary["AP75"] < shifted.summary["AP50"]


def test_format_results():
    evaluation = Evaluation(
        0.125,
        {"cat": 0.25, "dining table": None, "dog": 0.0},
        {"cat": 12, "dining table": 0, "dog": 3},
        {"cat": 345, "dining table": 6, "dog": 0},
        {},
    )
    lines = [
        "class             AP  objects  detections",
        "cat           0.2500       12         345",
        "dining table     n/a        0           6",
        "dog           0.0000        3           0",
        "mean          0.1250       15         351",
    ]
    assert format_results(evaluation).splitlines() == lines
    evaluation = evaluation._replace(map=None, summary={"AP": 0.5, "AR_small": None})
    assert format_results(evaluation).splitlines() == [
        *lines[:-1],
        "mean             n/a       15         351",
        "AP         0.5000",
        "AR_small      n/a",
    ]


def test_format_heading():
    first, second = format_heading("voc07", None, 0.05, 0.3, None).splitlines()
    assert first.startswith("voc07: VOC2007 average precision (11 points)")
    assert second == "fp32, scores above 0.05, NMS 0.3, all detections per image"
    assert format_heading("coco", torch.bfloat16, 0.1, 0.5, 7).splitlines()[1] == (
        "bf16, scores above 0.1, NMS 0.5, 7 detections per image"
    )


def test_worker_count(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [worker_count(None, cpu), worker_count(None, cuda)] == [0, 3]
    assert [worker_count(n, device) for n in (0, 2) for device in (cpu, cuda)] == [0, 0, 2, 2]
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert worker_count(None, cuda) == 4


# Proposals of a model


class RPN:
    """Proposes at half size in y and a quarter in x: first a box far away, then the objects with their IoU halved."""

    proposal_creator = ProposalCreator(min_size=3.0)

    class Output(NamedTuple):
        roi: torch.Tensor

    def __call__(self, feature, img_size, scale, train):
        assert (train, scale, torch.is_grad_enabled()) == (False, 0.5, False)
        assert (self.proposal_creator.n_test_pre_nms, self.proposal_creator.n_test_post_nms) == (12000, 2000)
        bbox = torch.tensor([[30.0, 0, 40, 10], *GT[feature][0]])
        bbox[:, 3] = bbox[:, 1] + (bbox[:, 3] - bbox[:, 1]) / 2
        return self.Output(bbox / torch.tensor([2.0, 4, 2, 4]))


class Proposer(torch.nn.Module):
    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.rpn = RPN()

    def prepare(self, img):
        assert not self.training
        self.index = img[0, 0, 0]
        return torch.zeros(1, 3, 20, 15), 0.5

    def extractor(self, img):
        return self.index


def test_recall_of_proposals(dataset):
    model = Proposer().train()
    recall = evaluate_proposals(model, dataset)
    assert model.training
    assert (RPN.proposal_creator.n_test_pre_nms, RPN.proposal_creator.n_test_post_nms) == (6000, 300)
    assert recall["n_object"] == 3
    assert recall["recall"] == [[1.0] + [0.0] * 9] * 5  # an IoU of 1/2 each
    assert (recall["n_pre_nms"], recall["nms_thresh"], recall["min_size"]) == (12000, 0.7, 3)
    assert evaluate_proposals(model, dataset, limit=1)["n_object"] == 2
    lines = format_recall(recall).splitlines()
    assert lines[0].startswith("recall of 3 objects")
    assert lines[1] == "fp32, n_pre_nms 12000, nms_thresh 0.7, min_size 3"
    assert lines[2].split() == ["proposals", *(f"{t:.2f}" for t in np.arange(0.5, 1, 0.05)), "mean"]
    assert lines[3].split() == ["50", "1.0000", *["0.0000"] * 9, "0.1000"]
    assert [line.split()[0] for line in lines[3:]] == ["50", "100", "300", "1000", "2000"]
    nothing = evaluate_proposals(model, Dataset([2]))
    json.dumps(nothing, allow_nan=False)
    assert "n/a" in format_recall(nothing)


# The COCO metric

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
    assert tuple(result["summary"]) == COCO_SUMMARY
    want = dict.fromkeys(COCO_SUMMARY, 1.0) | {"AR1": 2 / 3}  # one detection an image finds two of three objects
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
        assert {name for name in COCO_SUMMARY[3:6] if figures[name] == pytest.approx(1)} == set(names)
        assert sum(np.isnan(figures[name]) for name in COCO_SUMMARY[3:6]) == 1
        assert sum(np.isnan(figures[name]) for name in COCO_SUMMARY[9:]) == 1


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
        ({"gt_labels": [[4]], "n_class": 4}, "labels range from 0 to 4: they must be in 0 to 3"),
        ({"pred_labels": [[-1]]}, "labels range from -1"),
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


@pytest.mark.parametrize("noise", [0.05, 0.1, 0.2])
def test_ap50_is_near_the_area_of_the_voc_metric(noise):
    rng, lists = np.random.default_rng(1), [[] for _ in range(5)]
    for _ in range(80):  # two detections per object, the second with lower scores and sometimes another class
        corner, n = rng.uniform(0, 400, (8, 2)), 8
        bbox = np.hstack([corner, corner + rng.uniform(20, 200, (n, 2))])
        label = rng.integers(0, 3, n)
        pred_bbox = np.vstack(
            [bbox + rng.normal(0, noise, (n, 4)) * (bbox[:, 2:] - bbox[:, :2]).repeat(2, 1) for _ in "ab"]
        )
        pred_label = np.append(label, np.where(rng.random(n) < 0.3, rng.integers(0, 3, n), label))
        pred_score = np.append(rng.beta(4, 2, n), rng.beta(2, 4, n))
        for column, values in zip(lists, (pred_bbox, pred_label, pred_score, bbox, label), strict=True):
            column.append(values)
    area, ap50 = eval_detection_voc(*lists)["map"], eval_detection_coco(*lists)["summary"]["AP50"]
    assert 0.4 < area < 0.99
    assert ap50 == pytest.approx(area, abs=0.015)
    assert ap50 != pytest.approx(area, abs=1e-4)


def test_sizes_are_by_the_areas_that_are_given():
    gt = [[[0, 0, 40, 40], [50, 50, 60, 60]]], [[0, 0]], [[False, False]]  # 1600 and 100 pixels
    pred = [[[0, 0, 40, 40]]], [[0]], [[0.9]]
    figures = eval_detection_coco(*pred, *gt)["summary"]
    assert (figures["AR_small"], figures["AR_medium"]) == (0, 1)
    figures = eval_detection_coco(*pred, *gt, gt_areas=[[900, np.nan]])["summary"]
    assert (figures["AR_small"], np.isnan(figures["AR_medium"])) == (0.5, True)


# Recall of proposals


def test_recall_by_hand():
    # Image 0: the second proposal has 30 of 40 columns (0.75), the third is the object. Image 1: 7 of 10 rows.
    rois = [[MISS, [10, 20, 20, 50], OBJECT], [[10, 20, 17, 60]]]
    result = proposal_recall(rois, [[OBJECT, [300, 5, 310, 9]], [OBJECT]], None, (1, 2, 3, 99), (0.5, 0.72, 0.9))
    want = np.array([[1, 0, 0], [2, 1, 0], [2, 1, 1], [2, 1, 1]]) / 3
    np.testing.assert_allclose(result["recall"], want, rtol=1e-15)
    np.testing.assert_allclose(result["average"], np.array([1, 3, 4, 4]) / 9, rtol=1e-15)
    assert result["n_object"] == 3
    assert type(result["n_object"]) is int


def test_recall_boxes_are_continuous():
    # 4 x 9 of 9 x 9 is 0.44; in inclusive pixels it were 5 x 10 of 10 x 10, 0.5.
    near = [[[0, 0, 4, 9]]], [[[0, 0, 9, 9]]]
    assert proposal_recall(*near, None, [1], [0.5, 0.44])["recall"].tolist() == [[0, 1]]


def test_recall_x_and_y_are_not_swapped():
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


def test_recall_difficult_objects_are_left_out():
    gts, rois = [[OBJECT, MISS], [MISS]], [[OBJECT], [OBJECT]]
    result = proposal_recall(rois, gts, [[False, True], [False]], [1], [0.5])
    assert (result["n_object"], result["recall"]) == (2, 0.5)
    result = proposal_recall(rois, gts, [[True, False], [True]], [1], [0.5])
    assert (result["n_object"], result["recall"]) == (1, 0)


def test_recall_images_without_proposals_or_objects_between_others():
    rois = [NO_BOX, [OBJECT], [], [OBJECT], [MISS]]
    gts = [[OBJECT], NO_BOX, [OBJECT], [OBJECT], []]
    result = proposal_recall(rois, gts, None, [1, 300], [0.5])
    assert result["n_object"] == 3
    np.testing.assert_array_equal(result["recall"], np.full((2, 1), 1 / 3))


@pytest.mark.filterwarnings("error")
def test_recall_is_nan_without_objects_and_zero_without_proposals():
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


@pytest.mark.parametrize("change", [{"rois": []}, {"gt_difficults": []}, {"rois": [[OBJECT[:3]]]}])
def test_recall_input_that_does_not_fit(change):
    good = {"rois": [[OBJECT]], "gt_bboxes": [[OBJECT]], "gt_difficults": [[False]]}
    with pytest.raises(ValueError):  # noqa: PT011
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


def test_recall_input_is_not_changed():
    roi, gt = np.array([OBJECT, MISS], np.float64), np.array([OBJECT], np.float64)
    proposal_recall([roi], [gt])
    np.testing.assert_array_equal([*roi, *gt], [OBJECT, MISS, OBJECT])
