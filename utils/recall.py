"""How many of the objects the proposals find, by count of proposals and by IoU.

Shapes: R proposals and G objects of one image, C counts, K IoU thresholds.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

COUNTS = (50, 100, 300, 1000, 2000)
IOU_THRESHS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def proposal_recall(
    rois: Sequence[ArrayLike],
    gt_bboxes: Sequence[ArrayLike],
    gt_difficults: Sequence[ArrayLike] | None = None,
    counts: Sequence[int] = COUNTS,
    iou_threshs: Sequence[float] = IOU_THRESHS,
) -> dict:
    """The share of the objects that the first proposals of their image find.

    At count N and threshold t an object is found if one of the first N proposals of its image overlaps it by an
    IoU of at least t. There is no one-to-one assignment: one proposal may find several objects. So recall never
    falls with more proposals and never rises with the IoU. Difficult objects are left out.

    IoU is that of continuous boxes, not of the VOC metric's inclusive pixels. It is float64: for corners in whole
    pixels the number nearest to the true ratio. Thresholds are rounded to nine digits, so that 3 * 0.2, which is
    0.6000000000000001, means 0.6 and an IoU of 3 / 5 reaches it.

    Args: lists with one entry an image. `rois` (R, 4), best first, and `gt_bboxes` (G, 4) are
    (y_min, x_min, y_max, x_max), continuous, in pixels of the same image size; `gt_difficults` (G,) are bool
    (None: no object is difficult). `counts` (C,) are 1 or more, `iou_threshs` (K,) above 0 and up to 1.

    Returns {"recall": (C, K) float64, "average": (C,) float64, its mean over the thresholds, both NaN where
    there is no object, "n_object": int}. Raises ValueError where the lists do not fit together, or a count or
    threshold is out of range.
    """
    if gt_difficults is None:
        gt_difficults = [np.zeros(len(bbox), bool) for bbox in gt_bboxes]
    count, thresh = np.asarray(counts, np.int64), np.asarray(iou_threshs, np.float64).round(9)
    if not len(rois) == len(gt_bboxes) == len(gt_difficults):
        sizes = f"{len(rois)} images, gt_bboxes {len(gt_bboxes)} and gt_difficults {len(gt_difficults)}"
        raise ValueError(f"rois has {sizes}: they must agree")
    if (count < 1).any():
        raise ValueError(f"counts has {count.min()}: a count must be 1 or more")
    if not ((thresh > 0) & (thresh <= 1)).all():
        raise ValueError(f"iou_threshs is {tuple(iou_threshs)}: each must be above 0 and up to 1")

    n_object, found = 0, np.zeros((len(count), len(thresh)))
    for i, (roi, bbox, difficult) in enumerate(zip(rois, gt_bboxes, gt_difficults, strict=True)):
        roi, bbox = _boxes(f"rois[{i}]", roi), _boxes(f"gt_bboxes[{i}]", bbox)
        difficult = np.asarray(difficult, bool)
        if len(difficult) != len(bbox):
            raise ValueError(f"gt_difficults[{i}] has {len(difficult)} entries instead of {len(bbox)}, one an object")
        iou = _iou(roi[: count.max(initial=0)], bbox[~difficult])
        best = np.maximum.accumulate(np.vstack([np.zeros(iou.shape[1]), iou]))  # row N: best of the first N
        found += (best[np.minimum(count, len(roi)), :, None] >= thresh).sum(axis=1)
        n_object += iou.shape[1]
    recall = found / n_object if n_object else np.full_like(found, np.nan)
    return {"recall": recall, "average": recall.mean(axis=1), "n_object": n_object}


def _boxes(name, bbox):
    """Boxes as (n, 4) float64."""
    bbox = np.asarray(bbox, np.float64)
    if bbox.shape != (len(bbox), 4) and bbox.size > 0:  # no boxes may have any shape
        raise ValueError(f"{name} has shape {bbox.shape}: boxes are (n, 4)")
    return bbox.reshape(-1, 4)  # (n, 4)


def _iou(bbox_a, bbox_b):
    """IoU of each of (R, 4) boxes with each of (G, 4): (R, G)."""
    size = np.minimum(bbox_a[:, None, 2:], bbox_b[:, 2:]) - np.maximum(bbox_a[:, None, :2], bbox_b[:, :2])
    inter = size.clip(min=0).prod(axis=2)  # (R, G)
    area_a = (bbox_a[:, 2:] - bbox_a[:, :2]).prod(axis=1)
    area_b = (bbox_b[:, 2:] - bbox_b[:, :2]).prod(axis=1)
    return inter / np.maximum(area_a[:, None] + area_b - inter, np.finfo(np.float64).tiny)
