"""The COCO metric: average precision over ten IoU thresholds and COCO's twelve figures, by pycocotools.

Shapes: L classes, n boxes of one image.
"""

import contextlib
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

SUMMARY = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
SUMMARY += ("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large")


def eval_detection_coco(
    pred_bboxes: Sequence[ArrayLike],
    pred_labels: Sequence[ArrayLike],
    pred_scores: Sequence[ArrayLike],
    gt_bboxes: Sequence[ArrayLike],
    gt_labels: Sequence[ArrayLike],
    gt_difficults: Sequence[ArrayLike] | None = None,
    n_class: int | None = None,
) -> dict:
    """Score the detections of a data set at the IoU thresholds 0.5, 0.55 ... 0.95.

    At each threshold the detections of an image and class, by descending score, each take the object that they
    overlap most of those still free. Only the best 100 of an image and class count (AR1, AR10: the best 1, 10).

    A difficult object is a crowd, as COCO calls it: it need not be found, and a detection that takes it counts
    neither way. It may be taken any number of times, and only by detections that reach no free object that is not
    difficult. Its overlap is the intersection divided by the area of the detection alone, so that a small box
    inside a large difficult one takes it too. (In the VOC metric its IoU is that of any other object.)

    The area of an object is that of its box, not of a mask as in COCO's own figures. Small is up to 32 * 32
    pixels, medium up to 96 * 96, large the rest; an area right at a limit is in both. Boxes are continuous: no
    + 1, unlike in the VOC metric. 500 images with 100 detections each of 20 classes took 2.4 s, nearly all of it
    in pycocotools.

    Args: lists with one entry an image. Boxes (n, 4) are (y_min, x_min, y_max, x_max), continuous, in pixels,
    labels (n,) are 0 ... L-1, difficults (n,) are bool (None: no object is difficult).
    L is `n_class`, or the highest label seen plus one.

    Returns {"ap": (L,) float64, the mean precision at the recalls 0, 0.01 ... 1 and over the thresholds, NaN
    where a class has no object that is not difficult, "map": the mean of the others, NaN if there are none,
    "summary": `SUMMARY` name -> figure, NaN where no object counts}. Raises ValueError where the lists do not
    fit together or a label is not 0 ... L-1.
    """
    from pycocotools.cocoeval import COCOeval

    if gt_difficults is None:
        gt_difficults = [np.zeros(len(label), bool) for label in gt_labels]
    n_pred, n_gt = [len(bbox) for bbox in pred_bboxes], [len(bbox) for bbox in gt_bboxes]
    if len(n_pred) != len(n_gt):
        raise ValueError(f"pred_bboxes has {len(n_pred)} images and gt_bboxes {len(n_gt)}: they must agree")
    pred_bboxes = _arrays("pred_bboxes", pred_bboxes, n_pred, np.float64, (4,))
    pred_labels = _arrays("pred_labels", pred_labels, n_pred, np.int64)
    pred_scores = _arrays("pred_scores", pred_scores, n_pred, np.float64)
    gt_bboxes = _arrays("gt_bboxes", gt_bboxes, n_gt, np.float64, (4,))
    gt_labels = _arrays("gt_labels", gt_labels, n_gt, np.int64)
    gt_difficults = _arrays("gt_difficults", gt_difficults, n_gt, bool)

    label = np.concatenate([np.zeros(0, np.int64), *pred_labels, *gt_labels])
    n_class = int(label.max(initial=-1)) + 1 if n_class is None else n_class
    if len(label) and not 0 <= label.min() <= label.max() < n_class:
        raise ValueError(f"labels run from {label.min()} to {label.max()}: they must be 0 to {n_class - 1}")

    with contextlib.redirect_stdout(io.StringIO()):
        gt = _data_set(gt_bboxes, gt_labels, "iscrowd", gt_difficults, n_class)
        evaluation = COCOeval(gt, _data_set(pred_bboxes, pred_labels, "score", pred_scores, n_class), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1].mean(axis=(0, 1))  # (L,) all areas, most detections
    known = precision[precision >= 0]  # -1 where no object counts
    summary = np.where(evaluation.stats < 0, np.nan, evaluation.stats).tolist()
    return {
        "ap": np.where(precision < 0, np.nan, precision),
        "map": float(known.mean()) if len(known) else float("nan"),
        "summary": dict(zip(SUMMARY, summary, strict=True)),
    }


def _arrays(name, arrays, sizes, dtype, shape=()):
    """The arrays of all images, each (n, *shape) with n from `sizes`."""
    if len(arrays) != len(sizes):
        raise ValueError(f"{name} has {len(arrays)} images instead of {len(sizes)}: they must agree")
    arrays = [np.asarray(array, dtype) for array in arrays]
    for i, (array, size) in enumerate(zip(arrays, sizes, strict=True)):
        if array.shape != (size, *shape) and array.size + size > 0:  # no boxes may have any shape
            raise ValueError(f"{name}[{i}] has shape {array.shape} instead of {(size, *shape)}")
    return [array.reshape(size, *shape) for array, size in zip(arrays, sizes, strict=True)]  # (n, *shape)


def _data_set(bboxes, labels, key, values, n_class):
    """The boxes of all images as a data set of pycocotools, each with its value under `key`."""
    from pycocotools.coco import COCO

    annotations = []
    for i, (bbox, label, value) in enumerate(zip(bboxes, labels, values, strict=True)):
        size = bbox[:, 2:] - bbox[:, :2]
        corner_size = np.hstack([bbox[:, 1::-1], size[:, ::-1]]).tolist()  # (n, 4) x, y, width, height
        rows = zip(corner_size, size.prod(axis=1).tolist(), label.tolist(), value.tolist(), strict=True)
        annotations += [
            {"image_id": i, "bbox": box, "area": area, "category_id": category, key: extra}
            for box, area, category, extra in rows
        ]
    for number, annotation in enumerate(annotations):
        annotation["id"] = number + 1  # to pycocotools, 0 is no object
    data_set = COCO()
    data_set.dataset = {
        "images": [{"id": i} for i in range(len(bboxes))],
        "categories": [{"id": label} for label in range(n_class)],
        "annotations": annotations,
    }
    data_set.createIndex()
    return data_set
