"""Statistics instead of luck: trains a data set with several seeds and in both precisions, and compares.

    python tests/seeds.py --voc-data-dir=BCCD [--runs=bf16-0,bf16-1,bf16-2,fp32-0]

Prints the mean and the range of the last step's mAP, and how far the losses of the first step in bfloat16 are from
those in float32. It takes about 15 minutes a run in bf16 on one core; a run that is complete is not repeated.
"""
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import fire
import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from data.transforms import TrainTransform  # noqa: E402
from train import batches, open_run  # noqa: E402
from trainer import Losses  # noqa: E402
from utils.config import TrainConfig, make_config  # noqa: E402
from utils.run_folder import RUNS  # noqa: E402

# random weights, small images and anchors, the rate and the steps of the BCCD run in the README
OPTIONS = {"invalid_boxes": "skip", "pretrained": "none", "min_size": "240", "max_size": "320", "lr": "3e-3",
           "anchor_scales": "2,4,8", "rpn_min_size": "4", "max_steps": "1200", "lr_decay_step": "900", "visdom": "off"}


def main(voc_data_dir, runs="bf16-0,bf16-1,bf16-2,fp32-0"):
    """Trains what is missing, then prints the tables; see the top of the file."""
    options = OPTIONS | {"voc_data_dir": str(voc_data_dir)}
    names = runs if isinstance(runs, tuple) else str(runs).split(",")
    by_precision = {}
    for name in names:
        precision, seed = name.split("-")
        evaluation = last_evaluation(name, options | {"precision": precision, "seed": seed, "env": f"seeds-{name}"})
        print(f"{name}  mAP {evaluation['map']:.4f}  "
              + "  ".join(f"{key} {value:.4f}" for key, value in evaluation["ap"].items()))
        by_precision.setdefault(precision, []).append(evaluation["map"])
    for precision, values in by_precision.items():
        print(f"{precision}: mean {np.mean(values):.4f} of {len(values)}, range {min(values):.4f} to {max(values):.4f}")
    print("losses of the first step, bf16 / fp32 - 1, with the same proposals and with its own:")
    for seed in sorted({name.split("-")[1] for name in names}):
        same, own = first_losses(options | {"seed": seed})
        print(f"seed {seed}  " + "  ".join(
            f"{key} {a:+.2%} {b:+.2%}" for key, a, b in zip(Losses._fields, same, own, strict=True)))


def last_evaluation(name, options):
    """The last line of a run's log with an mAP, after training where the run is not complete."""
    path = RUNS / f"seeds-{name}" / "log.jsonl"
    line = evaluation_at(path, int(options["max_steps"]))
    if line is None or not made_with(path.with_name("config.json"), options):
        words = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
        subprocess.run([sys.executable, ROOT / "train.py", "train", "--overwrite", *words], check=True)
        line = evaluation_at(path, int(options["max_steps"]))
    return line


def evaluation_at(path, step):
    """The line of a log.jsonl that holds the evaluation at a step, or None."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return next((line for line in lines if line["kind"] == "eval" and line["step"] == step), None)


def made_with(path, options):
    """Whether a config.json says that a run had these options."""
    config = asdict(make_config(TrainConfig, options))
    stored = json.loads(path.read_text())
    return all(json.dumps(stored[name]) == json.dumps(config[name]) for name in options)


def first_losses(options):
    """Relative differences of the five losses of the first step: with float32's proposals, and with its own."""
    run = open_run(make_config(TrainConfig, options | {"env": "seeds-first", "precision": "fp32"}))
    (index,) = batches(len(run.train_set), 1, run.config.seed, 0)[0]
    transform = TrainTransform(run.model.prepare, run.config.flip_prob)
    run.model.train()
    losses, roi = [], None
    with torch.no_grad():
        for dtype, keep in ((None, False), (torch.bfloat16, True), (torch.bfloat16, False)):
            rng = np.random.default_rng([run.config.seed, 0, index])
            sample = transform(run.train_set[index], rng)
            with torch.autocast(sample.img.device.type, dtype, enabled=dtype is not None):
                img_size = tuple(sample.img.shape[2:])
                feature = run.model.extractor(sample.img)
                rpn = run.model.rpn(feature, img_size, sample.scale, train=True)
                roi = roi if keep else rpn.roi
                four = (*run.trainer.rpn_losses(rpn, sample.bbox, img_size, rng),
                        *run.trainer.head_losses(feature, roi, sample.bbox, sample.label, rng))
            losses.append(torch.stack((*four, sum(four))).cpu().numpy())
    return losses[1] / losses[0] - 1, losses[2] / losses[0] - 1


if __name__ == "__main__":
    fire.Fire(main)
