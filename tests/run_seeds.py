"""Train on one data set with several seeds and in both precisions, and compare.

    python tests/run_seeds.py --voc-data-dir=BCCD [--runs=bf16-0,bf16-1,bf16-2,fp32-0]

Prints mean and range of the last step's mAP, and how far the losses of the first step in bfloat16 are from those in
float32. About 15 minutes per run in bf16 on one core; a run that is complete is not repeated.
"""

import json
import subprocess
import sys
from pathlib import Path

import fire
import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import model  # noqa: E402
import training  # noqa: E402
from data.transforms import TrainDataset  # noqa: E402
from trainer import Losses  # noqa: E402
from utils.checkpoint import RUNS  # noqa: E402
from utils.config import TrainConfig, dashed, parse_options  # noqa: E402

# random weights, small images and anchors, the learning rate and the steps of the BCCD run in the README
OPTIONS = {
    "invalid_boxes": "skip",
    "pretrained": "none",
    "min_size": "240",
    "max_size": "320",
    "lr": "3e-3",
    "anchor_scales": "2,4,8",
    "rpn_min_size": "4",
    "max_steps": "1200",
    "lr_decay_step": "900",
    "visdom": "off",
}
LOSSES = Losses._fields[:5]


def main(voc_data_dir, runs="bf16-0,bf16-1,bf16-2,fp32-0"):
    """Train what is missing, then print the tables; see the top of the file."""
    options = OPTIONS | {"voc_data_dir": str(voc_data_dir)}
    names = runs if isinstance(runs, tuple) else str(runs).split(",")
    by_precision = {}
    for name in names:
        precision, seed = name.split("-")
        evaluation = last_evaluation(options | {"precision": precision, "seed": seed, "env": f"seeds-{name}"})
        per_class = "  ".join(f"{key} {value:.4f}" for key, value in evaluation["ap"].items())
        print(f"{name}  mAP {evaluation['map']:.4f}  {per_class}")
        by_precision.setdefault(precision, []).append(evaluation["map"])
    for precision, values in by_precision.items():
        print(f"{precision}: mean {np.mean(values):.4f} of {len(values)}, range {min(values):.4f} to {max(values):.4f}")
    print("losses of the first step, bf16 / fp32 - 1, with the same proposals and with its own:")
    for seed in sorted({name.split("-")[1] for name in names}):
        columns = zip(LOSSES, *first_losses(options | {"seed": seed}), strict=True)
        print(f"seed {seed}  " + "  ".join(f"{key} {same:+.2%} {own:+.2%}" for key, same, own in columns))


def resolve(options):
    """Return the options of a run, texts as on a command line, as a config."""
    return parse_options(TrainConfig, options, defaults=model.defaults)


def last_evaluation(options):
    """Return the record of the last evaluation of a run, after training if the run is not complete."""
    path = RUNS / options["env"] / "log.jsonl"
    record = evaluation_at(path, int(options["max_steps"]))
    if record is None or not made_with(path.with_name("config.json"), options):
        words = [f"--{dashed(key)}={value}" for key, value in options.items()]
        subprocess.run([sys.executable, ROOT / "train.py", "train", "--overwrite", *words], check=True)
        record = evaluation_at(path, int(options["max_steps"]))
    return record


def evaluation_at(path, step):
    """Return the record in a log.jsonl of the evaluation at a step, or None."""
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return next((record for record in records if record["kind"] == "eval" and record["step"] == step), None)


def made_with(path, options):
    """Whether a config.json says that a run had these options."""
    config, stored = resolve(options).model_dump(), json.loads(path.read_text())
    return all(json.dumps(stored.get(name)) == json.dumps(config[name]) for name in options)


def first_losses(options):
    """Return relative differences of the five losses of the first step: with float32's proposals, and with its own."""
    config = resolve(options | {"precision": "fp32", "device": "cpu"})
    dataset, _ = training.build_datasets(config)
    net, _ = training.build_model(config, dataset.classes)
    trainer = training.build_trainer(config, net.train())
    (index,) = training.epoch_batches(config, len(dataset), 0)[0]
    losses, proposals = [], None
    with torch.no_grad():
        for dtype, keep in ((None, True), (torch.bfloat16, True), (torch.bfloat16, False)):
            trainer.dtype = dtype
            sample = TrainDataset(dataset, config.seed, 0, config.flip_prob)[index]
            if proposals is None:
                pixel, scale = net.prepare(sample.img)
                proposals = net.rpn(net.extractor(pixel), pixel.shape[2:], scale, train=True).roi.numpy()
                sides = np.divide(sample.img.shape[:2], pixel.shape[2:])
                proposals = (proposals * np.tile(sides, 2)).astype(np.float32)  # in pixels of the image
            loss = trainer.compute_losses(sample._replace(roi=proposals if keep else None))
            losses.append(torch.stack(loss[:5]).numpy())
    return losses[1] / losses[0] - 1, losses[2] / losses[0] - 1


if __name__ == "__main__":
    fire.Fire(main)
