"""Evaluate a checkpoint: `python eval.py --load-path=runs/voc/last.pth`.

It prints the average precision of the detections by one of three metrics, or, with `--proposals`, the recall of the
RPN's proposals.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads: docs/benchmarks.md#a-busy-machine

import json
from pathlib import Path

import fire

import data
import model
from data.validate import DataError
from data.voc_dataset import VOC_CLASSES
from utils import checkpoint as ckpt
from utils import coco_eval, distributed, metrics
from utils.config import EvalConfig, OptionError, command, counted, training_options
from utils.vis import plot_recall


def main(config):
    """Evaluate a checkpoint and print a table; `config` is an `EvalConfig`."""
    if config.plot and not config.proposals:
        raise OptionError(f"--plot={config.plot} draws the recall of proposals: give --proposals, too")
    if config.coco_json and config.proposals:
        raise OptionError(f"--coco-json={config.coco_json} is for detections: leave out --proposals")
    device = distributed.pick_device(config.device)
    dtype = distributed.pick_dtype(config.precision, device)
    if config.deterministic:
        distributed.set_deterministic()
    checkpoint = ckpt.open_checkpoint(config.load_path, config.preprocess)
    dataset = build_dataset(config, checkpoint)
    plot = config.proposals and (config.plot or f"{Path(config.load_path).with_suffix('')}.recall.png")
    ckpt.check_writable(config.json_path, config.coco_json, plot)
    with ckpt.checkpoint_error(config.load_path):
        net = model.restore(checkpoint)
    net.to(device)
    n_image = min(len(dataset), config.limit or len(dataset))
    print(f"{dataset.root}, split {dataset.split}: {counted(n_image, 'image')}", *dataset.notes, sep="\n")
    if config.proposals:
        results = coco_eval.evaluate_proposals(net, dataset, dtype, config.num_workers, config.limit)
        table = coco_eval.format_recall(results)
    else:
        options = metrics.predict_options(config, net)
        metric = config.metric or getattr(dataset, "metric", "voc07")
        pred = metrics.detect(net, dataset, dtype, config.num_workers, config.limit, **options)
        evaluation = metrics.score(pred, dataset, metric)
        if config.coco_json:
            ckpt.write_text(config.coco_json, json.dumps(coco_eval.dataset_results(pred, dataset)))
        table = f"{metrics.format_heading(metric, dtype, **options)}\n{metrics.format_results(evaluation)}"
        results = {"metric": metric, "precision": "bf16" if dtype else "fp32"} | options | evaluation._asdict()
    if config.json_path:
        about = {"checkpoint": config.load_path, "step": checkpoint["step"], "data": str(dataset.root)}
        about |= {"preprocessing": checkpoint["preprocessing"], "split": dataset.split, "n_image": n_image}
        ckpt.write_text(config.json_path, json.dumps(about | results, indent=1, ensure_ascii=False))
    print(table)
    if config.proposals:
        plot_recall(results["recall"], coco_eval.COUNTS, coco_eval.IOU_THRESHS, plot)
        print(f"drawn in {plot}")
    if config.json_path:
        print(f"written to {config.json_path}")


def build_dataset(config, checkpoint):
    """Read the split to evaluate on; options that are not given are those of the training."""
    options = training_options(config, checkpoint)
    classes = ckpt.resolve_class_names(checkpoint, data.read_class_names(config.classes), VOC_CLASSES)
    (dataset,) = data.build(options.data, options, (options.eval_split,), classes)
    return dataset


if __name__ == "__main__":
    fire.Fire(command(EvalConfig, main, (DataError, ckpt.CheckpointError), defaults=model.defaults))
