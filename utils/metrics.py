"""Evaluate a detector on a data set: average precision per class.

Shapes: L classes, n boxes of one image.
"""

import os
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from utils.checkpoint import UNUSED
from utils.distributed import gather_interleaved, rank, world_size
from utils.vis import comparison
from utils.voc_eval import eval_detection_voc, join_images

METRICS = {
    "voc07": "VOC2007 average precision (11 points) at IoU 0.5, difficult objects ignored",
    "voc": "VOC average precision (area under the curve, VOC2010 and later) at IoU 0.5, difficult objects ignored",
    "coco": "COCO average precision over IoU 0.5 to 0.95, best 100 per image and class, difficult ones are crowds",
}


class Evaluation(NamedTuple):
    """Results of a detector on a data set. An average precision is None where the data set has no object."""

    map: float | None  # mean average precision
    ap: dict[str, float | None]  # per class
    n_object: dict[str, int]  # per class, without difficult objects
    n_detection: dict[str, int]  # per class
    summary: dict[str, float | None]  # COCO's twelve figures; empty for the other metrics


def evaluate(model, dataset, metric="voc07", dtype=None, num_workers=None, limit=None, **predict_options) -> Evaluation:
    """Detect objects on every image of a data set and compute their average precision.

    Several processes share the images; each returns the same result.

    Args:
        model: `FasterRCNN`.
        dataset: data set that includes its difficult objects.
        metric: a key of `METRICS`.
        dtype: torch.bfloat16 for autocast, None for float32.
        num_workers: processes that read images; None: see `worker_count`.
        limit: evaluate only the first `limit` images; None: all.
        predict_options: arguments of `model.predict`.
    """
    return score(detect(model, dataset, dtype, num_workers, limit, **predict_options), dataset, metric)


def detect(model, dataset, dtype=None, num_workers=None, limit=None, **predict_options) -> list[list[np.ndarray]]:
    """Return (n, 4) boxes, (n,) labels and (n,) scores of the detections, each a list over images; see `evaluate`."""
    detected, device = [], model.device
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        for sample in read_samples(dataset, limit, num_workers, device):
            detected += zip(*predict_sample(model, sample, **predict_options), strict=True)  # bbox, label, score
    detected = gather_interleaved(detected)
    return [[image[i] for image in detected] for i in range(3)]


def predict_sample(model, sample, **predict_options):
    """Return `model.predict` of one sample, on the sample's own proposals instead of the RPN's if it has some."""
    if sample.roi is None:
        return model.predict([sample.img], **predict_options)

    def propose(rpn_loc, fg_score, anchor, img_size, *_):
        ratio = [after / before for before, after in zip(sample.img.shape[:2], img_size, strict=True)]
        return anchor.new_tensor(sample.roi) * anchor.new_tensor(ratio * 2)  # (R, 4)

    model.rpn.propose = propose
    try:
        return model.predict([sample.img], **predict_options)
    finally:
        del model.rpn.propose  # the method is visible again


def score(pred, dataset, metric="voc07") -> Evaluation:
    """Compute the average precision of the detections `pred` that `detect` returns; see `evaluate`."""
    gt = [objects[: len(pred[0])] for objects in (dataset.bboxes, dataset.labels, dataset.difficults)]
    n_class = len(dataset.classes)
    if metric == "coco":
        from utils.coco_eval import eval_detection_coco

        areas = getattr(dataset, "areas", None)
        result = eval_detection_coco(*pred, *gt, n_class=n_class, gt_areas=areas and areas[: len(pred[0])])
    else:
        result = eval_detection_voc(*pred, *gt, n_class=n_class, use_07_metric=metric == "voc07")
    (_, _, pred_label, _), (_, _, gt_label, difficult), _ = join_images(*pred, *gt, n_class)
    n_object, n_detection = (np.bincount(label, minlength=n_class) for label in (gt_label[~difficult], pred_label))
    columns = to_plain(result["ap"]), n_object.tolist(), n_detection.tolist()
    per_class = ({k: v for k, v in zip(dataset.classes, column, strict=True) if k != UNUSED} for column in columns)
    summary = {name: to_plain(value) for name, value in result.get("summary", {}).items()}
    return Evaluation(to_plain(result["map"]), *per_class, summary)


def read_samples(dataset, limit, num_workers, device):
    """Yield the samples of this process, with a progress bar in the first process."""
    indices = range(len(dataset))[:limit][rank() :: world_size()]
    loader = DataLoader(
        Subset(dataset, indices),
        collate_fn=itemgetter(0),  # batches of one
        num_workers=worker_count(num_workers, device),
        generator=torch.Generator(),  # leave torch's global random state alone
    )
    return tqdm(loader, desc="evaluate", unit="img", leave=False, dynamic_ncols=True, disable=rank() > 0)


def worker_count(num_workers: int | None, device: torch.device) -> int:
    """Resolve `--num-workers`: None means up to 4 with a GPU, and 0 on a CPU, which the network needs itself."""
    default = min(4, os.cpu_count() or 1) if device.type == "cuda" else 0
    return default if num_workers is None else num_workers


def draw_detections(model, dataset, n_image: int, dtype: torch.dtype | None = None, **predict_options) -> np.ndarray:
    """Draw ground truth beside detections on up to `n_image` images of a data set; see `vis.comparison`, `evaluate`."""
    samples = [dataset[i] for i in range(0, len(dataset), -(-len(dataset) // n_image))]
    with torch.autocast(model.device.type, dtype, enabled=dtype is not None):
        detections = [predict_sample(model, sample, **predict_options) for sample in samples]
    detections = [[values for (values,) in column] for column in zip(*detections, strict=True)]
    return comparison(samples, detections, dataset.classes)


def predict_options(config, model) -> dict:
    """Return the arguments of `model.predict` that a config states; None means the model's own."""
    names = ("score_thresh", "nms_thresh", "max_detections")
    return {name: getattr(model if getattr(config, name) is None else config, name) for name in names}


def format_heading(metric, dtype, score_thresh, nms_thresh, max_detections) -> str:
    """Describe what a table of results measures: metric, precision, thresholds."""
    settings = f"scores above {score_thresh:g}, NMS {nms_thresh:g}, {max_detections or 'all'} detections per image"
    return f"{metric}: {METRICS[metric]}\n{precision_name(dtype)}, {settings}"


def format_results(evaluation: Evaluation) -> str:
    """Format an evaluation as a table with a row per class, their mean, and COCO's figures."""
    width = max(map(len, [*evaluation.ap, "class"]))
    total = (sum(column.values()) for column in (evaluation.n_object, evaluation.n_detection))
    rows = [(name, ap, evaluation.n_object[name], evaluation.n_detection[name]) for name, ap in evaluation.ap.items()]
    lines = [f"{'class':{width}}      AP  objects  detections"]
    for name, ap, n_object, n_detection in [*rows, ("mean", evaluation.map, *total)]:
        lines.append(f"{name:{width}}  {format_value(ap)}  {n_object:7d}  {n_detection:10d}")
    return "\n".join(lines + [f"{name:9}  {format_value(value)}" for name, value in evaluation.summary.items()])


def precision_name(dtype) -> str:
    """Return "bf16" or "fp32"."""
    return "bf16" if dtype else "fp32"


def to_plain(values):
    """Convert a number or an array to plain Python values, NaN to None."""
    return np.where(np.isnan(values), None, values).tolist()


def format_value(value) -> str:
    """Format a number with four digits, None as n/a."""
    return "   n/a" if value is None else f"{value:6.4f}"
