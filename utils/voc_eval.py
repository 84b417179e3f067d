"""The PASCAL VOC metric: average precision per class and its mean, by the rules of the VOC devkit.

Shapes: L classes, N detections and G objects of all images together, n of one image, P pairs.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def eval_detection_voc(
    pred_bboxes: Sequence[ArrayLike],
    pred_labels: Sequence[ArrayLike],
    pred_scores: Sequence[ArrayLike],
    gt_bboxes: Sequence[ArrayLike],
    gt_labels: Sequence[ArrayLike],
    gt_difficults: Sequence[ArrayLike] | None = None,
    iou_thresh: float = 0.5,
    use_07_metric: bool = False,
    n_class: int | None = None,
) -> dict:
    """Score the detections of a data set.

    The detections of a class are taken by descending score over all images (ties: in the order given). Each
    claims the object of its image and class that it overlaps most, the first of equals. With IoU below
    `iou_thresh` it is a false positive; otherwise, if the object is difficult, it counts neither way;
    otherwise the first claim is the hit, and later claims of the same object are false positives.

    Args: lists with one entry an image. Boxes (n, 4) are (y_min, x_min, y_max, x_max), continuous, in pixels,
    labels (n,) are 0 ... L-1, difficults (n,) are bool (None: no object is difficult).
    `use_07_metric` takes the mean precision at the 11 recalls 0, 0.1 ... 1, not the area under the curve.
    L is `n_class`, or the highest label seen plus one.

    Returns {"ap": (L,) float64, NaN where a class has no object that is not difficult, "map": the mean of the
    others, NaN if there are none}. Raises ValueError where the lists do not fit together or a label is not
    0 ... L-1.
    """
    if gt_difficults is None:
        gt_difficults = [np.zeros(len(label), bool) for label in gt_labels]
    n_pred, n_gt = [len(bbox) for bbox in pred_bboxes], [len(bbox) for bbox in gt_bboxes]
    if len(n_pred) != len(n_gt):
        raise ValueError(f"pred_bboxes has {len(n_pred)} images and gt_bboxes {len(n_gt)}: they must agree")
    pred_bbox = _flatten("pred_bboxes", pred_bboxes, n_pred, np.float64, (4,))
    pred_label = _flatten("pred_labels", pred_labels, n_pred, np.int64)
    pred_score = _flatten("pred_scores", pred_scores, n_pred, np.float64)
    gt_bbox = _flatten("gt_bboxes", gt_bboxes, n_gt, np.float64, (4,))
    gt_label = _flatten("gt_labels", gt_labels, n_gt, np.int64)
    gt_difficult = _flatten("gt_difficults", gt_difficults, n_gt, bool)

    labels = np.concatenate([pred_label, gt_label])
    n_class = labels.max(initial=-1) + 1 if n_class is None else n_class
    if len(labels) and not 0 <= labels.min() <= labels.max() < n_class:
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}: they must be 0 to {n_class - 1}")

    # The devkit's pixels are inclusive: a box from 3 to 3 is one pixel wide. Ours run from edge to edge.
    pred_bbox[:, 2:] += 1
    gt_bbox[:, 2:] += 1
    # A detection meets the objects of its own image and class only, which share one number, the group.
    order = np.argsort(-pred_score, kind="stable")
    pred_label = pred_label[order]
    pred_group = np.repeat(np.arange(len(n_pred)), n_pred)[order] * n_class + pred_label
    gt_group = np.repeat(np.arange(len(n_gt)), n_gt) * n_class + gt_label
    outcome = _match(pred_bbox[order], pred_group, gt_bbox, gt_group, gt_difficult, iou_thresh)

    ap = np.full(n_class, np.nan)
    n_object = np.bincount(gt_label[~gt_difficult], minlength=n_class)
    for label in np.flatnonzero(n_object):
        hit = outcome[(pred_label == label) & (outcome >= 0)]
        ap[label] = _average_precision(hit, n_object[label], use_07_metric)
    return {"ap": ap, "map": float(np.nanmean(ap)) if n_object.any() else float("nan")}


def count_objects(
    labels: Sequence[ArrayLike], difficults: Sequence[ArrayLike] | None, n_class: int
) -> np.ndarray:
    """Count objects (or, with `difficults=None`, detections) per class, difficult ones left out: (L,) int64.

    `labels` and `difficults` are lists with one (n,) entry an image.
    """
    label = _flatten("labels", labels, map(len, labels), np.int64)
    if difficults is not None:
        label = label[~_flatten("difficults", difficults, map(len, labels), bool)]
    return np.bincount(label, minlength=n_class)


def _flatten(name, arrays, sizes, dtype, shape=()):
    """Join the arrays of all images, of `sizes` rows each, to a new one (sum of sizes, *shape)."""
    flat = [np.zeros((0, *shape), dtype)]
    sizes = list(sizes)
    if len(arrays) != len(sizes):
        raise ValueError(f"{name} has {len(arrays)} images instead of {len(sizes)}: they must agree")
    for i, (array, size) in enumerate(zip(arrays, sizes, strict=True)):
        array = np.asarray(array, dtype)
        if array.shape != (size, *shape) and array.size + size > 0:  # no boxes may have any shape
            raise ValueError(f"{name}[{i}] has shape {array.shape} instead of {(size, *shape)}")
        flat.append(array.reshape(size, *shape))  # (n, *shape)
    return np.concatenate(flat)


def _match(pred_bbox, pred_group, gt_bbox, gt_group, gt_difficult, iou_thresh):
    """Judge detections that come by descending score: (N,) int8, 1 hit, 0 false positive, -1 neither.

    What a detection claims depends on boxes alone, never on who came before: so all of them are looked up at
    once, and the first claim of each object is its hit.
    """
    gt_order = np.argsort(gt_group, kind="stable")
    start = np.searchsorted(gt_group[gt_order], pred_group, side="left")
    n_pair = np.searchsorted(gt_group[gt_order], pred_group, side="right") - start
    pred = np.repeat(np.arange(len(pred_bbox)), n_pair)  # (P,)
    nth = np.arange(len(pred)) - np.repeat(np.cumsum(n_pair) - n_pair, n_pair)  # (P,) 0, 1 ... of a detection
    gt = gt_order[np.repeat(start, n_pair) + nth]

    iou = _pair_iou(pred_bbox[pred], gt_bbox[gt])
    near = iou >= iou_thresh
    pred, gt, iou = pred[near], gt[near], iou[near]
    best_first = np.lexsort((-iou, pred))
    pred, first = np.unique(pred[best_first], return_index=True)
    gt = gt[best_first][first]

    outcome = np.zeros(len(pred_bbox), np.int8)
    _, first = np.unique(gt, return_index=True)
    outcome[pred[first]] = 1
    outcome[pred[gt_difficult[gt]]] = -1
    return outcome


def _pair_iou(bbox_a, bbox_b):
    """IoU of each row of one (P, 4) with the same row of the other: (P,)."""
    size = np.minimum(bbox_a[:, 2:], bbox_b[:, 2:]) - np.maximum(bbox_a[:, :2], bbox_b[:, :2])
    inter = size.clip(min=0).prod(axis=1)
    area_a = (bbox_a[:, 2:] - bbox_a[:, :2]).prod(axis=1)
    area_b = (bbox_b[:, 2:] - bbox_b[:, :2]).prod(axis=1)
    return inter / np.maximum(area_a + area_b - inter, np.finfo(np.float64).tiny)


def _average_precision(hit, n_object, use_07_metric):
    """Average precision of one class from its (n,) hits (1) and false positives (0) by descending score."""
    recall = np.cumsum(hit) / n_object
    precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # best precision at this recall or a higher one
    if use_07_metric:
        # The devkit's recalls, with its rounding: 0.3, 0.6 and 0.7 come out a hair too large.
        at = np.searchsorted(recall, np.arange(11) * 0.1)
        return np.append(best, 0.0)[at].mean()  # a recall that is never reached has precision 0
    return np.sum(np.diff(recall, prepend=0.0) * best)
