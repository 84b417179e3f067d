"""Average precision of a checkpoint: `python eval.py --load-path=runs/voc/last.pth`.

L: classes.
"""
import json
import math
import os
from pathlib import Path
from typing import NamedTuple

import fire
import torch
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from data import find_root, read_names
from data.voc import DataError, VOCDataset
from model import restore
from utils.checkpoint import CheckpointError, load_checkpoint
from utils.config import EvalConfig, OptionError, command, pick_device, pick_dtype
from utils.files import write_text
from utils.voc_eval import count_objects, eval_detection_voc


class Evaluation(NamedTuple):
    """What the detector is worth on a data set."""

    map: float  # mean average precision
    ap: dict  # class name -> average precision, None where the data set has no such object
    n_object: dict  # class name -> objects, the difficult ones left out
    n_detection: dict  # class name -> detections


def evaluate(model, dataset, metric="voc07", dtype=None, num_workers=None, limit=None, **predict_options):
    """Detects on every image of a data set and compares.

    Args:
        model: `FasterRCNN`.
        dataset: `VOCDataset`, with its difficult objects.
        metric: "voc07" (11 points) or "voc" (area).
        dtype: torch.bfloat16 for autocast, None for float32.
        num_workers: processes that read images; None: see `worker_count`.
        limit: how many images, from the first on; None for all.
        predict_options: of `model.predict`.

    Returns:
        `Evaluation`.
    """
    n_image = min(len(dataset), limit or len(dataset))
    bboxes, labels, scores = [], [], []
    device = model.loc_std.device
    loader = DataLoader(Subset(dataset, range(n_image)), batch_size=None, collate_fn=_as_it_is,
                        num_workers=worker_count(num_workers, device), generator=torch.Generator())  # see train.py
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        for sample in tqdm(loader, desc="evaluate", unit="img", leave=False, dynamic_ncols=True):
            bbox, label, score = model.predict([sample.img], **predict_options)
            bboxes += bbox
            labels += label
            scores += score
    gt_bboxes, gt_labels, gt_difficults = (objects[:n_image] for objects in dataset.objects())
    n_class = len(dataset.classes)
    result = eval_detection_voc(bboxes, labels, scores, gt_bboxes, gt_labels, gt_difficults,
                                use_07_metric=metric == "voc07", n_class=n_class)
    columns = ([None if math.isnan(ap) else ap for ap in result["ap"].tolist()],
               count_objects(gt_labels, gt_difficults, n_class).tolist(), count_objects(labels, None, n_class).tolist())
    return Evaluation(result["map"], *(dict(zip(dataset.classes, column, strict=True)) for column in columns))


def _as_it_is(sample):
    return sample


def table(evaluation):
    """The results as lines of text, one a class."""
    width = max(map(len, [*evaluation.ap, "class"]))
    lines = [f"{'class':{width}}      AP  objects  detections"]
    for name, ap in evaluation.ap.items():
        value = "   n/a" if ap is None else f"{ap:6.4f}"
        lines.append(f"{name:{width}}  {value}  {evaluation.n_object[name]:7d}  {evaluation.n_detection[name]:10d}")
    total = [sum(column.values()) for column in (evaluation.n_object, evaluation.n_detection)]
    return "\n".join([*lines, f"{'mean':{width}}  {evaluation.map:6.4f}  {total[0]:7d}  {total[1]:10d}"])


def predict_options(config):
    """What a config says of `model.predict`."""
    return {"score_thresh": config.score_thresh, "nms_thresh": config.nms_thresh,
            "max_detections": config.max_detections}


def worker_count(num_workers, device):
    """How many processes read images: as asked, else none on a CPU, where they would take it from the network."""
    if num_workers is not None:
        return num_workers
    return min(4, os.cpu_count() or 1) if device.type == "cuda" else 0


def names_for(checkpoint, classes):
    """The names of a checkpoint's classes: those that `--classes` means, else those it was trained with."""
    names = read_names(classes) or tuple(checkpoint["class_names"])
    if len(names) != checkpoint["build"]["n_fg_class"]:
        raise OptionError(f"the checkpoint knows {checkpoint['build']['n_fg_class']} classes, but there are "
                          f"{len(names)} names: {', '.join(names)}: mend --classes")
    return names


def main(config):
    """Evaluates as `EvalConfig` says; prints a table."""
    device = pick_device(config.device)
    dtype = pick_dtype(config.precision, device)
    checkpoint = load_checkpoint(config.load_path)
    trained = checkpoint["config"]
    classes = names_for(checkpoint, config.classes)
    own_folder = "voc" if config.voc_data_dir else None
    root = find_root(config.data or own_folder or trained["data"], config.voc_data_dir or trained["voc_data_dir"])
    split = config.split or trained["eval_split"]
    dataset = VOCDataset(root, split, classes, invalid_boxes=config.invalid_boxes or trained["invalid_boxes"])
    if config.json:
        Path(config.json).parent.mkdir(parents=True, exist_ok=True)
    model = restore(checkpoint).to(device)
    evaluation = evaluate(model, dataset, config.metric, dtype, config.num_workers, config.limit,
                          **predict_options(config))
    precision = "bf16" if dtype else "fp32"
    about = {"checkpoint": config.load_path, "step": checkpoint["step"], "data": str(root), "split": split,
             "metric": config.metric, "precision": precision, "score_thresh": config.score_thresh,
             "nms_thresh": config.nms_thresh}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(table(evaluation))
    if config.json:
        write_text(config.json, json.dumps(about | evaluation._asdict(), indent=1, ensure_ascii=False))
        print(f"written to {config.json}")


if __name__ == "__main__":
    fire.Fire(command(EvalConfig, main, (DataError, CheckpointError)))
