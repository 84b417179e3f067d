"""What a checkpoint is worth: `python eval.py --load-path=runs/voc/last.pth`.

Average precision of the detections by one of three metrics, or, with `--proposals`, recall of the RPN's proposals.
"""
import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import fire
import torch
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from data import find_root, read_names
from data.voc import CLASSES, DataError, VOCDataset
from model import build, restore
from model.faster_rcnn import evaluating
from utils.checkpoint import CheckpointError, load_checkpoint
from utils.coco_eval import eval_detection_coco
from utils.config import EvalConfig, OptionError, TrainConfig, as_text, command, dashed
from utils.described import check_described
from utils.device import be_deterministic, pick_device, pick_dtype
from utils.dist import ALONE
from utils.outputs import check_outputs, write_output, writing
from utils.progress import working_on
from utils.recall import COUNTS, IOU_THRESHS, proposal_recall
from utils.vis import plot_recall
from utils.voc_eval import count_objects, eval_detection_voc

METRICS = {  # what each means, for the reader of a table
    "voc07": "VOC2007's average precision (11 points) at IoU 0.5, difficult objects count neither way",
    "voc": "VOC's average precision (area, from 2010 on) at IoU 0.5, difficult objects count neither way",
    "coco": "COCO's average precision, the mean over IoU 0.5 to 0.95, difficult objects are crowds; the best 100 of an "
            "image and class count",
}
# as many as in training (12000 before the suppression, py-faster-rcnn); prediction takes the first 300 of them
PROPOSAL_NUMBERS = {"n_test_pre_nms": 12000, "n_test_post_nms": max(COUNTS)}


class Evaluation(NamedTuple):
    """What the detector is worth on a data set. An average precision is None where nothing was there to find."""

    map: float | None  # mean average precision
    ap: dict  # class name -> average precision
    n_object: dict  # class name -> objects, the difficult ones left out
    n_detection: dict  # class name -> detections
    summary: dict  # COCO's twelve figures; empty for the other metrics


def evaluate(model, dataset, metric="voc07", dtype=None, num_workers=None, limit=None, team=ALONE, **predict_options):
    """Detects on every image of a data set and compares.

    Args:
        model: `FasterRCNN`.
        dataset: `VOCDataset`, with its difficult objects.
        metric: one of `METRICS`.
        dtype: torch.bfloat16 for autocast, None for float32.
        num_workers: processes that read images; None: see `worker_count`.
        limit: how many images, from the first on; None for all.
        team: the processes that share the work.
        predict_options: of `model.predict`.

    Returns:
        `Evaluation`.
    """
    detected = []
    device = model.loc_std.device
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        for sample in _samples(dataset, limit, num_workers, device, team):
            detected += zip(*model.predict([sample.img], **predict_options), strict=True)  # bbox, label, score
    bboxes, labels, scores = ([image[i] for image in team.interleave(detected)] for i in range(3))
    gt_bboxes, gt_labels, gt_difficults = (objects[:len(bboxes)] for objects in dataset.objects())
    n_class = len(dataset.classes)
    compared = bboxes, labels, scores, gt_bboxes, gt_labels, gt_difficults
    with working_on("comparing", team.rank == 0):
        if metric == "coco":
            result = eval_detection_coco(*compared, n_class=n_class)
        else:
            result = eval_detection_voc(*compared, use_07_metric=metric == "voc07", n_class=n_class)
    columns = ([_plain(ap) for ap in result["ap"]], count_objects(gt_labels, gt_difficults, n_class).tolist(),
               count_objects(labels, None, n_class).tolist())
    by_class = (dict(zip(dataset.classes, column, strict=True)) for column in columns)
    summary = {name: _plain(value) for name, value in result.get("summary", {}).items()}
    return Evaluation(_plain(result["map"]), *by_class, summary)


def evaluate_proposals(model, dataset, dtype=None, num_workers=None, limit=None):
    """Recall of the RPN's proposals, the best first: arguments as for `evaluate`; see `proposal_recall`.

    The model should be built with `PROPOSAL_NUMBERS`; with fewer proposals, the recall of the larger counts stays
    where they end.
    """
    rois = []
    device = model.loc_std.device
    with torch.no_grad(), evaluating(model), torch.autocast(device.type, dtype, enabled=dtype is not None):
        for sample in _samples(dataset, limit, num_workers, device):
            img, scale = model.prepare(sample.img)
            roi = model.rpn(model.extractor(img), img.shape[2:], scale, train=False).roi  # (R, 4)
            ratio = [side / resized for side, resized in zip(sample.img.shape[:2], img.shape[2:], strict=True)]
            rois.append((roi * roi.new_tensor(ratio * 2)).cpu().numpy())
    gt_bboxes, _, gt_difficults = (objects[:len(rois)] for objects in dataset.objects())
    return proposal_recall(rois, gt_bboxes, gt_difficults)


def _samples(dataset, limit, num_workers, device, team=ALONE):
    """The samples of a data set, or this process's share of them, read ahead by other processes, with a bar."""
    subset = Subset(dataset, range(n_image(dataset, limit))[team.rank::team.size])
    loader = DataLoader(subset, batch_size=None, collate_fn=_as_it_is, generator=torch.Generator(),  # see train.py
                        num_workers=worker_count(num_workers, device))
    return tqdm(loader, desc="evaluate", unit="img", leave=False, dynamic_ncols=True, disable=team.rank > 0)


def n_image(dataset, limit):
    """How many images of a data set `--limit` means."""
    return min(len(dataset), limit or len(dataset))


def _as_it_is(sample):
    return sample


def _plain(value):
    """A number for JSON, None for NaN."""
    return None if math.isnan(value) else float(value)


def _text(value):
    return "   n/a" if value is None else f"{value:6.4f}"


def table(evaluation):
    """The results as lines of text, one a class."""
    width = max(map(len, [*evaluation.ap, "class"]))
    lines = [f"{'class':{width}}      AP  objects  detections"]
    for name, ap in evaluation.ap.items():
        lines.append(f"{name:{width}}  {_text(ap)}  {evaluation.n_object[name]:7d}  {evaluation.n_detection[name]:10d}")
    total = [sum(column.values()) for column in (evaluation.n_object, evaluation.n_detection)]
    lines.append(f"{'mean':{width}}  {_text(evaluation.map)}  {total[0]:7d}  {total[1]:10d}")
    return "\n".join(lines + [f"{name:9}  {_text(value)}" for name, value in evaluation.summary.items()])


def recall_table(recall):
    """What `evaluate_proposals` found as lines of text, one a count."""
    lines = ["proposals  " + "  ".join(f"{thresh:6.2f}" for thresh in IOU_THRESHS) + "    mean"]
    for count, row, mean in zip(COUNTS, recall["recall"], recall["average"], strict=True):
        lines.append(f"{count:9d}  " + "  ".join(_text(_plain(value)) for value in [*row, mean]))
    return "\n".join(lines)


def predict_options(config):
    """What a config says of `model.predict`."""
    return {"score_thresh": config.score_thresh, "nms_thresh": config.nms_thresh,
            "max_detections": config.max_detections}


def worker_count(num_workers, device):
    """How many processes read images: as asked, else none on a CPU, where they would take it from the network."""
    if num_workers is not None:
        return num_workers
    return min(4, os.cpu_count() or 1) if device.type == "cuda" else 0


def open_checkpoint(path, preprocess="auto"):
    """Reads a checkpoint, ours or another program's, and says what it is.

    Args:
        path: the file.
        preprocess: what the network sees, for weights whose file does not say it; "auto": torchvision's.

    Returns:
        A checkpoint as in utils/checkpoint.py.
    """
    checkpoint = load_checkpoint(path)
    if "format" in checkpoint:
        if preprocess != "auto":
            raise OptionError(f"--preprocess={preprocess}: {path} says itself what its weights want, leave it at auto")
        check_described(path, checkpoint, build)
        print(f"{path}: a checkpoint of this library, step {checkpoint['step']}")
        return checkpoint
    known = checkpoint["preprocessing"]
    if preprocess != "auto":
        checkpoint["preprocessing"], why = preprocess, "as --preprocess says"
    elif known:
        why = "as its layout says" if checkpoint["layout"] == "chainercv" else "as its file says"
    else:
        checkpoint["preprocessing"], why = "torchvision", "for want of better: --preprocess=caffe-rgb-mean is the other"
    print(f"{path}: a detector of {checkpoint['layout']}, {checkpoint['build']['n_fg_class']} classes, "
          f"preprocessing {checkpoint['preprocessing']}, {why}")
    return checkpoint


def names_for(checkpoint, classes):
    """The names of a checkpoint's classes: its own, else those that `--classes` means, else VOC's if there are 20."""
    n_class, own, given = checkpoint["build"]["n_fg_class"], tuple(checkpoint["class_names"]), read_names(classes)
    if own and given and own != given:
        raise OptionError(f"the checkpoint knows {', '.join(own)}: leave out --classes={','.join(given)}, which says "
                          "otherwise")
    names = own or given or (CLASSES if n_class == len(CLASSES) else ())
    if len(names) != n_class:
        raise OptionError(f"the checkpoint knows {n_class} classes, but there are {len(names)} names"
                          f"{': ' if names else ''}{', '.join(names)}: name them with --classes=a,b,c")
    return names


def check_start(checkpoint, classes, config):
    """Raises CheckpointError unless training with `config` can start from these weights; says what is otherwise.

    With `--reset-head` the classes may differ; the width of the head may not. Anchors and image sizes may: then
    what differs is printed.
    """
    path, made, names = config.load_path, checkpoint["build"], checkpoint["class_names"]
    if not config.reset_head and (made["n_fg_class"] != len(classes) or (names and list(names) != list(classes))):
        known = f" ({', '.join(names)})" if names else ""
        found = f"the data have {len(classes)} ({', '.join(classes)})"
        raise CheckpointError(f"{path} knows {made['n_fg_class']} classes{known}, {found}: --reset-head starts those "
                              "layers anew, --classes says which classes in which order")
    if made["head_width"] != config.head_width:
        raise CheckpointError(f"{path} has fc6 and fc7 of width {made['head_width']}, not {config.head_width}: "
                              f"--head-width={made['head_width']}")
    for name in ("anchor_scales", "anchor_ratios", "min_size", "max_size"):
        then, now = made.get(name), getattr(config, name)
        if then is not None and as_text(then) != as_text(now):
            print(f"note: these weights were trained with --{dashed(name)}={as_text(then)}, now it is {as_text(now)}")
    if made.get("ceil_mode"):
        print("note: these weights were trained with poolings that round sizes up, here they round down")
    if not (names or config.reset_head):
        print(f"note: the file does not name its classes; they are taken for {', '.join(classes)}, in this order")


def main(config):
    """Evaluates as `EvalConfig` says; prints a table."""
    if config.plot and not config.proposals:
        raise OptionError(f"--plot={config.plot} draws the recall of --proposals: give both")
    device = pick_device(config.device)
    dtype = pick_dtype(config.precision, device)
    if config.deterministic:
        be_deterministic()
    checkpoint = open_checkpoint(config.load_path, config.preprocess)
    trained = asdict(TrainConfig()) | checkpoint["config"]
    classes = names_for(checkpoint, config.classes)
    own_folder = "voc" if config.voc_data_dir else None
    root = find_root(config.data or own_folder or trained["data"], config.voc_data_dir or trained["voc_data_dir"])
    split = config.split or trained["eval_split"]
    dataset = VOCDataset(root, split, classes, invalid_boxes=config.invalid_boxes or trained["invalid_boxes"])
    plot = Path(config.plot or f"{Path(config.load_path).with_suffix('')}.recall.png")
    check_outputs(config.json, plot if config.proposals else None)
    about = {"checkpoint": config.load_path, "step": checkpoint["step"], "preprocessing": checkpoint["preprocessing"],
             "data": str(root), "split": split, "n_image": n_image(dataset, config.limit),
             "precision": "bf16" if dtype else "fp32"}
    print(f"{root}, {about['n_image']} images of split {split}", *dataset.findings.noted(), sep="\n")
    measure = measure_proposals if config.proposals else measure_detections
    results = measure(config, checkpoint, dataset, device, dtype)
    if config.json:
        write_output(config.json, json.dumps(about | results, indent=1, ensure_ascii=False))
    if config.proposals:
        with writing(plot):
            plot_recall(results["recall"], COUNTS, IOU_THRESHS, plot)
    places = [f"written to {config.json}"] * bool(config.json) + [f"drawn in {plot}"] * config.proposals
    print(", ".join(places) or "written nowhere: --json=FILE keeps these figures")
    print(f"next: python predict.py IMAGE_OR_FOLDER --load-path={config.load_path}")


def heading(metric, dtype, score_thresh, nms_thresh, max_detections):
    """What a table of results is about: metric, difficult objects, precision, thresholds."""
    kept = f"the best {max_detections}" if max_detections else "all"
    return (f"{metric}: {METRICS[metric]}\n{'bf16' if dtype else 'fp32'}, scores above {score_thresh:g}, "
            f"NMS {nms_thresh:g}, {kept} of an image")


def measure_detections(config, checkpoint, dataset, device, dtype):
    """Prints average precision, and returns it for `--json`."""
    model = restore(checkpoint).to(device)
    options = predict_options(config)
    evaluation = evaluate(model, dataset, config.metric, dtype, config.num_workers, config.limit, **options)
    print(f"{heading(config.metric, dtype, **options)}\n{table(evaluation)}")
    return {"metric": config.metric, "meaning": METRICS[config.metric]} | options | evaluation._asdict()


def measure_proposals(config, checkpoint, dataset, device, dtype):
    """Prints the recall of proposals, and returns it for `--json`."""
    proposal = checkpoint["build"].get("proposal", {}) | PROPOSAL_NUMBERS
    model = restore(checkpoint | {"build": checkpoint["build"] | {"proposal": proposal}}).to(device)
    recall = evaluate_proposals(model, dataset, dtype, config.num_workers, config.limit)
    creator = model.rpn.proposal_creator
    numbers = {"n_pre_nms": creator.n_test_pre_nms, "nms_thresh": creator.nms_thresh, "min_size": creator.min_size}
    print(f"recall of {recall['n_object']} objects, the difficult ones left out, against IoU, for the first so many "
          f"proposals of an image\n{'bf16' if dtype else 'fp32'}, "
          + ", ".join(f"{name} {value:g}" for name, value in numbers.items()) + f"\n{recall_table(recall)}")
    return numbers | {
        "n_object": recall["n_object"], "counts": COUNTS, "iou_threshs": IOU_THRESHS,
        "recall": [[_plain(value) for value in row] for row in recall["recall"]],
        "average": [_plain(value) for value in recall["average"]]}


if __name__ == "__main__":
    fire.Fire(command(EvalConfig, main, (DataError, CheckpointError)))
