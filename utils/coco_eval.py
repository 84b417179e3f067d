"""COCO's average precision and its twelve figures by pycocotools, and the average recall of the RPN's proposals.

Shapes: L classes, n boxes of one image, R proposals and G objects of one image, C counts, K IoU thresholds.
"""

import contextlib
import copy
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from utils.config import OptionError, dashed
from utils.distributed import gather_interleaved
from utils.metrics import format_value, precision_name, read_samples, to_plain
from utils.voc_eval import broadcast_iou, join_images

COCO_SUMMARY = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
COCO_SUMMARY += ("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large")
COUNTS = (50, 100, 300, 1000, 2000)  # proposals per image
IOU_THRESHS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
N_PRE_NMS = 12000  # proposals before NMS when their recall is measured, as in training (py-faster-rcnn)


def eval_detection_coco(
    pred_bboxes, pred_labels, pred_scores, gt_bboxes, gt_labels, gt_difficults=None, n_class=None, gt_areas=None
) -> dict:
    """Compute COCO's average precision (paper 4.2) and its twelve figures with pycocotools.

    Difficult objects are crowds: they need not be found, and detections assigned to them are ignored. A crowd can be
    assigned any number of detections, but only those that match no other free object, and its overlap is the
    intersection divided by the area of the detection. (In the VOC metric it is the IoU.)

    The area of an object is that of its box where `gt_areas` (per image (G,), in pixels; NaN: none) does not give that
    of its mask, as COCO's files do. Small is up to 32 * 32 pixels, medium up to 96 * 96; an area exactly at a limit
    belongs to both ranges. Boxes are continuous, without the + 1 of the VOC metric.

    Args: see `eval_detection_voc`.

    Returns:
        {"ap": (L,) float64, mean precision over the recalls 0, 0.01 ... 1 and the IoU thresholds, NaN for a class
        without objects that are not difficult,
        "map": mean of the others, NaN if there are none,
        "summary": name in `COCO_SUMMARY` -> figure, NaN where no object counts}.

    Raises:
        ValueError: the lists do not match, or a label is not in 0 ... L - 1.
    """
    from pycocotools.cocoeval import COCOeval

    pred, gt, n_class = join_images(pred_bboxes, pred_labels, pred_scores, gt_bboxes, gt_labels, gt_difficults, n_class)
    with contextlib.redirect_stdout(io.StringIO()):
        area = np.full(len(gt[0]), np.nan) if gt_areas is None else np.concatenate([[], *gt_areas])
        coco_gt = _to_coco(*gt, "iscrowd", len(gt_bboxes), n_class, area)
        evaluation = COCOeval(coco_gt, _to_coco(*pred, "score", len(gt_bboxes), n_class), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1].mean(axis=(0, 1))  # (L,) all areas, most detections
    known = precision[precision >= 0]  # -1 where no object counts
    summary = np.where(evaluation.stats < 0, np.nan, evaluation.stats).tolist()
    return {
        "ap": np.where(precision < 0, np.nan, precision),
        "map": float(known.mean()) if len(known) else float("nan"),
        "summary": dict(zip(COCO_SUMMARY, summary, strict=True)),
    }


def _to_coco(image, bbox, label, value, key, n_image, n_class, area=np.nan):
    """Convert boxes to a data set of pycocotools, each with its value under `key`."""
    from pycocotools.coco import COCO

    size = bbox[:, 2:] - bbox[:, :2]
    coco_bbox = np.hstack([bbox[:, 1::-1], size[:, ::-1]])  # x, y, width, height
    area = np.where(np.isnan(area), size.prod(axis=1), area)
    columns = {"image_id": image, "bbox": coco_bbox, "area": area, "category_id": label, key: value}
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    dataset = COCO()
    dataset.dataset = {
        "images": [{"id": i} for i in range(n_image)],
        "categories": [{"id": i} for i in range(n_class)],
        "annotations": [{"id": i, **dict(zip(columns, row, strict=True))} for i, row in enumerate(rows, start=1)],
    }
    dataset.createIndex()
    return dataset


def number_ids(names: Sequence[str]) -> list:
    """Return COCO's image_id of each name: a number if all are digits and differ as numbers, else the name itself."""
    numbers = [int(name) for name in names if name.isdecimal()]
    return numbers if len(set(numbers)) == len(names) else [*names]


def coco_results(image_id, bbox, label, score, category_ids: Sequence | None = None) -> list[dict]:
    """Convert the detections of an image, (n, 4), (n,), (n,), to COCO's format for results.

    `category_ids` are those of the labels, None where COCO's file lacks the class, which is left out; without it they
    count the classes from 1.
    """
    bbox, results = np.asarray(bbox, np.float64).reshape(-1, 4).round(2), []
    for corners, k, value in zip(bbox.tolist(), np.asarray(label).tolist(), np.asarray(score).tolist(), strict=True):
        y_min, x_min, y_max, x_max = corners
        category_id = category_ids[k] if category_ids else k + 1
        if category_id is not None:
            shape = [x_min, y_min, round(x_max - x_min, 2), round(y_max - y_min, 2)]
            results.append({"image_id": image_id, "category_id": category_id, "bbox": shape, "score": round(value, 6)})
    return results


def check_results_file(path: str | None, option: str = "coco_json", start: str = "[") -> None:
    """Raise an OptionError where a file would be replaced that is neither empty nor begins as results do."""
    if path and Path(path).is_file():
        with open(path, encoding="utf-8", errors="replace") as file:
            head = file.read(99).strip()
            if head and not head.startswith(start):
                raise OptionError(f"--{dashed(option)}={path} exists and holds no results: name another file")


def dataset_results(pred, dataset) -> list[dict]:
    """Convert the detections on a data set, as `metrics.detect` returns them; see `coco_results`."""
    image_ids, category_ids = getattr(dataset, "image_ids", None), getattr(dataset, "category_ids", None)
    images = zip(image_ids or number_ids(dataset.ids), *pred, strict=False)
    return [row for image in images for row in coco_results(*image, category_ids)]


def evaluate_proposals(model, dataset, dtype=None, num_workers=None, limit=None) -> dict:
    """Compute the recall of the RPN's proposals (paper 4.1, figure 4), up to 2000 per image out of 12000 before NMS.

    Args: see `evaluate`.

    Returns:
        Plain values for JSON: the result of `proposal_recall`, None for NaN, with "counts" and "iou_threshs", and
        the settings "precision", "n_pre_nms", "nms_thresh" and "min_size".
    """
    numbers, creator = {"n_test_pre_nms": N_PRE_NMS, "n_test_post_nms": max(COUNTS)}, model.rpn.proposal_creator
    rois = propose(model, dataset, False, dtype, num_workers, limit, **numbers)
    recall = proposal_recall(rois, dataset.bboxes[: len(rois)], dataset.difficults[: len(rois)])
    settings = {"precision": precision_name(dtype), "n_pre_nms": N_PRE_NMS, "nms_thresh": creator.nms_thresh}
    settings |= {"min_size": creator.min_size, "counts": COUNTS, "iou_threshs": IOU_THRESHS}
    return settings | {name: to_plain(value) for name, value in recall.items()}


@torch.no_grad()
def propose(model, dataset, train, dtype=None, num_workers=None, limit=None, **settings) -> list[np.ndarray]:
    """Return the RPN's proposals of each image, (R, 4) float32 in its pixels, best first.

    Args:
        train: propose as in training instead of as in prediction.
        settings: see `with_settings`.
        the others: see `evaluate`.
    """
    rois, device, was_training = [], model.device, model.training
    rpn = with_settings(model.rpn, **settings)
    model.eval()
    try:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            for sample in read_samples(dataset, limit, num_workers, device):
                img, scale = model.prepare(sample.img)
                roi = rpn(model.extractor(img), img.shape[2:], scale, train).roi  # (R, 4)
                ratio = [side / resized for side, resized in zip(sample.img.shape[:2], img.shape[2:], strict=True)]
                rois.append((roi * roi.new_tensor(ratio * 2)).cpu().numpy())
    finally:
        model.train(was_training)
    return gather_interleaved(rois)


def with_settings(rpn, **settings):
    """Return a copy of an RPN, with the same layers, whose `ProposalCreator` has other settings."""
    rpn = copy.copy(rpn)
    rpn.proposal_creator = dataclasses.replace(rpn.proposal_creator, **settings)
    return rpn


def format_recall(recall: dict) -> str:
    """Format the result of `evaluate_proposals` as a table with a row per number of proposals."""
    head = "recall of {n_object} objects (difficult ones ignored) by IoU, for the best proposals per image\n"
    head += "{precision}, n_pre_nms {n_pre_nms}, nms_thresh {nms_thresh:g}, min_size {min_size:g}"
    columns = [f"{thresh:6.2f}" for thresh in recall["iou_threshs"]]
    lines = [head.format(**recall), "  ".join(["proposals", *columns, "  mean"])]
    for count, row, mean in zip(recall["counts"], recall["recall"], recall["average"], strict=True):
        lines.append(f"{count:9d}  " + "  ".join(format_value(value) for value in [*row, mean]))
    return "\n".join(lines)


def proposal_recall(rois, gt_bboxes, gt_difficults=None, counts=COUNTS, iou_threshs=IOU_THRESHS) -> dict:
    """Compute the fraction of objects that the best proposals of their image cover.

    For count N and threshold t, an object is covered if one of the first N proposals of its image has an IoU of at
    least t with it. One proposal may cover several objects. Difficult objects are ignored. Boxes are continuous,
    without the + 1 of the VOC metric. Thresholds are rounded to nine digits, so that 3 * 0.2 = 0.6000000000000001
    means 0.6, which an IoU of 3 / 5 reaches.

    Args:
        rois: per image (R, 4) proposals (y_min, x_min, y_max, x_max), best first, in pixels.
        gt_bboxes: per image (G, 4) boxes of the objects.
        gt_difficults: per image (G,) bool; None: no object is difficult.
        counts: (C,) numbers of proposals, at least 1.
        iou_threshs: (K,) in (0, 1].

    Returns:
        {"recall": (C, K) float64, "average": (C,) float64, its mean over the thresholds, both NaN where there is no
        object, "n_object": int}.

    Raises:
        ValueError: the lists have different lengths.
    """
    if gt_difficults is None:
        gt_difficults = [np.zeros(len(bbox), bool) for bbox in gt_bboxes]
    thresh = np.asarray(iou_threshs, np.float64).round(9)
    n_object, covered = 0, np.zeros((len(counts), len(thresh)))
    for roi, bbox, difficult in zip(rois, gt_bboxes, gt_difficults, strict=True):
        roi, bbox = (np.asarray(boxes, np.float64).reshape(-1, 4) for boxes in (roi, bbox))
        iou = broadcast_iou(roi[: max(counts), None], bbox[~np.asarray(difficult, bool)])  # (R, G)
        best = np.maximum.accumulate(np.vstack([np.zeros(iou.shape[1]), iou]))  # row N: best of the first N
        covered += (best[np.minimum(counts, len(roi)), :, None] >= thresh).sum(axis=1)
        n_object += iou.shape[1]
    recall = covered / n_object if n_object else np.full_like(covered, np.nan)
    return {"recall": recall, "average": recall.mean(axis=1), "n_object": n_object}
