"""Evaluate a checkpoint: `python eval.py --load-path=runs/voc/last.pth`.

It prints the average precision of the detections by one of three metrics, or, with `--proposals`, the recall of the
RPN's proposals, or, with `--ablate`, what the parts of the RPN are worth.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads: docs/benchmarks.md#a-busy-machine

import json
from functools import partial
from pathlib import Path

import fire

import data
import model
from data.validate import DataError
from data.voc_dataset import VOC_CLASSES
from model.rpn import RegionProposalNetwork
from model.truncated_svd import compress_head
from utils import ablation, coco_eval, distributed, metrics
from utils import checkpoint as ckpt
from utils.command import command, training_options
from utils.config import EvalConfig, OptionError, counted
from utils.vis import plot_recall


def main(config):
    """Evaluate a checkpoint and print a table; `config` is an `EvalConfig`."""
    kind = "recall" if config.proposals else "ablation" if config.ablate else None
    if config.plot and not kind:
        raise OptionError(f"--plot={config.plot} draws recall or ablations: give --proposals or --ablate, too")
    if config.detector and not config.ablate:
        raise OptionError(f"--detector={config.detector} classifies the proposals of --ablate: give that, too")
    if config.coco_json and kind:
        raise OptionError(f"--coco-json={config.coco_json} is for detections: leave out --proposals and --ablate")
    coco_eval.check_results_file(config.coco_json)
    coco_eval.check_results_file(config.json_path, "json", '{\n "checkpoint"')
    device = distributed.pick_device(config.device, config.deterministic)
    dtype = distributed.pick_dtype(config.precision, device)
    checkpoint = ckpt.open_checkpoint(config.load_path, config.preprocess)
    classifier = ckpt.open_checkpoint(config.detector, config.preprocess) if config.detector else checkpoint
    dataset = build_dataset(config, classifier)
    plot = kind and (config.plot or f"{Path(config.load_path).with_suffix('')}.{kind}.png")
    ckpt.check_writable(config.json_path, config.coco_json, plot)
    detector = restore(config.detector or config.load_path, classifier, device, config.svd)
    n_image = min(len(dataset), config.limit or len(dataset))
    print(f"{dataset.root}, split {dataset.split}: {counted(n_image, 'image')}", *dataset.notes, sep="\n")
    if n_seen := ckpt.count_seen(dataset, checkpoint):
        print(f"note: the training saw images with {n_seen} of these ids")
    results, table, files, draw = measure(config, checkpoint, detector, dataset, dtype)
    if config.json_path:
        about = {"checkpoint": config.load_path, "step": checkpoint["step"], "data": str(dataset.root)}
        about |= {"preprocessing": checkpoint["preprocessing"], "split": dataset.split, "n_image": n_image}
        files[config.json_path] = json.dumps(about | results, indent=1, ensure_ascii=False)
    try:
        for path, text in files.items():
            ckpt.write_text(path, text)
    finally:  # also if the disk is full
        print(table)
    if draw:
        draw(plot)
        print(f"drawn in {plot}")
    if config.json_path:
        print(f"written to {config.json_path}")


def measure(config, checkpoint, detector, dataset, dtype):
    """Return results for JSON, their table, other files as path -> text, and what draws the results, or None."""
    options, reading = metrics.predict_options(config, detector), (dtype, config.num_workers, config.limit)
    if config.proposals:
        results = coco_eval.evaluate_proposals(detector, dataset, *reading)
        draw = partial(plot_recall, results["recall"], coco_eval.COUNTS, coco_eval.IOU_THRESHS)
        return results, coco_eval.format_recall(results), {}, draw
    metric = config.metric or getattr(dataset, "metric", "voc07")
    heading, files, draw = metrics.format_heading(metric, dtype, **options), {}, None
    results = {"metric": metric, "precision": metrics.precision_name(dtype), "svd": config.svd} | options
    if config.ablate:
        proposer = restore(config.load_path, checkpoint, detector.device) if config.detector else detector
        if not isinstance(proposer.rpn, RegionProposalNetwork):
            raise OptionError(f"--ablate: {config.load_path} proposes level by level, of which no part is left out")
        rows = ablation.ablate(proposer, detector, dataset, metric, *reading, **options)
        results |= {"detector": config.detector, "rows": [row._asdict() for row in rows]}
        table, draw = ablation.format_ablation(rows, config.detector), partial(ablation.plot_ablation, rows)
    else:
        pred = metrics.detect(detector, dataset, *reading, **options)
        evaluation = metrics.score(pred, dataset, metric)
        if config.coco_json:
            files[config.coco_json] = json.dumps(coco_eval.dataset_results(pred, dataset))
        results, table = results | evaluation._asdict(), metrics.format_results(evaluation)
    return results, f"{heading}\n{table}", files, draw


def restore(path, checkpoint, device, svd=None):
    """Build the network of a checkpoint that was read from `path`; keep `svd` singular values of fc6 and fc7."""
    with ckpt.checkpoint_error(path):
        net = model.restore(checkpoint).to(device)
        if svd:
            compress_head(net.head, svd)
    return net


def build_dataset(config, checkpoint):
    """Read the split to evaluate on; options that are not given are those of the training."""
    replaced = {"proposals_file": None} if config.proposals or config.ablate else {}  # these are about the RPN
    options = training_options(config, checkpoint, **replaced)
    classes = ckpt.resolve_class_names(checkpoint, data.read_class_names(config.classes), VOC_CLASSES)
    (dataset,) = data.build(options.data, options, (options.eval_split,), classes)
    return dataset


if __name__ == "__main__":
    fire.Fire(command(EvalConfig, main, (DataError, ckpt.CheckpointError), defaults=model.defaults))
