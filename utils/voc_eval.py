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
    """Compute the average precision of the detections of a data set (paper 4.1).

    The detections of a class are ranked by descending score over all images (ties: in the order given). Each
    claims the object of its image and class with which it has the highest IoU (ties: the first). If that IoU is
    below `iou_thresh`, the detection is a false positive. Otherwise, if the object is difficult, the detection is
    ignored. Otherwise the first claim of an object is a true positive, and later claims are false positives.

    Args:
        pred_bboxes: per image (n, 4) boxes (y_min, x_min, y_max, x_max), continuous, in pixels.
        pred_labels: per image (n,) labels in 0 ... L - 1.
        pred_scores: per image (n,) scores.
        gt_bboxes: per image (n, 4) boxes of the objects.
        gt_labels: per image (n,) labels of the objects.
        gt_difficults: per image (n,) bool; None: no object is difficult.
        iou_thresh: lowest IoU of a true positive.
        use_07_metric: average the precision at the 11 recalls 0, 0.1 ... 1 instead of taking the area under the
            precision-recall curve.
        n_class: L; None: the highest label plus one.

    Returns:
        {"ap": (L,) float64, NaN for a class without objects that are not difficult,
        "map": mean of the others, NaN if there are none}.

    Raises:
        ValueError: the lists do not match, or a label is not in 0 ... L - 1.
    """
    pred, gt, n_class = join_images(pred_bboxes, pred_labels, pred_scores, gt_bboxes, gt_labels, gt_difficults, n_class)
    pred_image, pred_bbox, pred_label, pred_score = pred
    gt_image, gt_bbox, gt_label, gt_difficult = gt
    # The devkit's pixels are inclusive: a box from 3 to 3 is one pixel wide. Ours are continuous.
    pred_bbox[:, 2:] += 1
    gt_bbox[:, 2:] += 1
    # A detection can only match objects of its own image and class, which share one number, the group.
    order = np.argsort(-pred_score, kind="stable")
    pred_label, pred_group = pred_label[order], (pred_image * n_class + pred_label)[order]
    outcome = _match(pred_bbox[order], pred_group, gt_bbox, gt_image * n_class + gt_label, gt_difficult, iou_thresh)

    ap = np.full(n_class, np.nan)
    n_object = np.bincount(gt_label[~gt_difficult], minlength=n_class)
    for label in np.flatnonzero(n_object):
        hit = outcome[(pred_label == label) & (outcome >= 0)]
        ap[label] = _average_precision(hit, n_object[label], use_07_metric)
    return {"ap": ap, "map": float(np.nanmean(ap)) if n_object.any() else float("nan")}


def join_images(pred_bboxes, pred_labels, pred_scores, gt_bboxes, gt_labels, gt_difficults, n_class):
    """Check the lists that `eval_detection_voc` takes and join their images.

    Returns:
        Detections: (N,) index of the image, (N, 4) float64 boxes, (N,) int64 labels, (N,) float64 scores.
        Objects: (G,) index of the image, (G, 4) float64 boxes, (G,) int64 labels, (G,) bool difficult.
        L.
    """
    if gt_difficults is None:
        gt_difficults = [np.zeros(len(label), bool) for label in gt_labels]
    n_pred, n_gt = [len(bbox) for bbox in pred_bboxes], [len(bbox) for bbox in gt_bboxes]
    if len(n_pred) != len(n_gt):
        raise ValueError(f"pred_bboxes has {len(n_pred)} images and gt_bboxes {len(n_gt)}: they must agree")
    pred_label = _join("pred_labels", pred_labels, n_pred, np.int64)
    pred_score = _join("pred_scores", pred_scores, n_pred, np.float64)
    gt_label = _join("gt_labels", gt_labels, n_gt, np.int64)
    gt_difficult = _join("gt_difficults", gt_difficults, n_gt, bool)
    labels = np.concatenate([pred_label, gt_label])
    n_class = int(labels.max(initial=-1)) + 1 if n_class is None else n_class
    if len(labels) and not 0 <= labels.min() <= labels.max() < n_class:
        raise ValueError(f"labels range from {labels.min()} to {labels.max()}: they must be in 0 to {n_class - 1}")
    pred_image, gt_image = (np.repeat(np.arange(len(sizes)), sizes) for sizes in (n_pred, n_gt))
    pred_bbox = _join("pred_bboxes", pred_bboxes, n_pred, np.float64, (4,))
    gt_bbox = _join("gt_bboxes", gt_bboxes, n_gt, np.float64, (4,))
    return (pred_image, pred_bbox, pred_label, pred_score), (gt_image, gt_bbox, gt_label, gt_difficult), n_class


def _join(name, arrays, sizes, dtype, shape=()):
    """Join the arrays of all images, of `sizes` rows each, to a new one (sum of sizes, *shape)."""
    if len(arrays) != len(sizes):
        raise ValueError(f"{name} has {len(arrays)} images instead of {len(sizes)}: they must agree")
    joined = [np.zeros((0, *shape), dtype)]
    for i, (array, size) in enumerate(zip(arrays, sizes, strict=True)):
        array = np.asarray(array, dtype)
        if array.shape != (size, *shape) and array.size + size > 0:  # an empty list has no second axis
            raise ValueError(f"{name}[{i}] has shape {array.shape} instead of {(size, *shape)}")
        joined.append(array.reshape(size, *shape))
    return np.concatenate(joined)


def broadcast_iou(bbox_a, bbox_b):
    """Compute the IoU of (..., 4) and (..., 4) boxes, which broadcast; 0 for boxes without area."""
    size = np.minimum(bbox_a[..., 2:], bbox_b[..., 2:]) - np.maximum(bbox_a[..., :2], bbox_b[..., :2])
    inter = size.clip(min=0).prod(axis=-1)
    area_a, area_b = ((bbox[..., 2:] - bbox[..., :2]).prod(axis=-1) for bbox in (bbox_a, bbox_b))
    return inter / np.maximum(area_a + area_b - inter, np.finfo(np.float64).tiny)


def _match(pred_bbox, pred_group, gt_bbox, gt_group, gt_difficult, iou_thresh):
    """Match detections sorted by descending score: (N,) int8, 1 true positive, 0 false positive, -1 ignored.

    Which object a detection claims depends on boxes alone, not on earlier detections. So the claims of all
    detections are found at once, and the first claim of each object is its true positive.
    """
    gt_order = np.argsort(gt_group, kind="stable")
    start = np.searchsorted(gt_group[gt_order], pred_group, side="left")
    n_pair = np.searchsorted(gt_group[gt_order], pred_group, side="right") - start
    pred = np.repeat(np.arange(len(pred_bbox)), n_pair)  # (P,)
    nth = np.arange(len(pred)) - np.repeat(np.cumsum(n_pair) - n_pair, n_pair)  # (P,) 0, 1 ... per detection
    gt = gt_order[np.repeat(start, n_pair) + nth]

    iou = broadcast_iou(pred_bbox[pred], gt_bbox[gt])
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


def _average_precision(hit, n_object, use_07_metric):
    """Compute the average precision of a class from (n,) true (1) and false (0) positives by descending score."""
    recall = np.cumsum(hit) / n_object
    precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # best precision at this recall or a higher one
    if use_07_metric:
        # The devkit's recalls, with its rounding: 0.3, 0.6 and 0.7 are slightly too large.
        at = np.searchsorted(recall, np.arange(11) * 0.1)
        return np.append(best, 0.0)[at].mean()  # the precision at a recall that is never reached is 0
    return np.sum(np.diff(recall, prepend=0.0) * best)
