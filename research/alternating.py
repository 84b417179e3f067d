"""Four-step alternating training (paper 3.2): `python -m research.alternating --env=x ...`, with the options of train.

1. The RPN is trained, from pretrained weights.
2. Fast R-CNN is trained on its proposals, from pretrained weights, too; nothing is shared (paper, table 2: unshared).
3. The RPN's own layers are trained anew on the detector's convolutions, which are fixed from here on.
4. The detector's own layers are trained further on the proposals of step 3.

Each step is a run in runs/ENV/1-rpn ... 4-detector, with its own checkpoints and log; runs/ENV/last.pth is the last.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads: docs/benchmarks.md#a-busy-machine

import functools
import json
import shutil
from itertools import accumulate
from typing import Literal

import fire

import model
import utils.checkpoint as ckpt
import utils.distributed as dist
from data.proposals import WithProposals, read_proposals, write_proposals
from data.validate import DataError
from research.fast_rcnn import FastRCNNTrainer, RPNTrainer
from training import TrainingError, build_datasets, build_model, build_trainer, fit, start_run
from utils.coco_eval import COUNTS, evaluate_proposals, format_recall, propose
from utils.command import command
from utils.config import Count, OptionError, Share, Times, TrainConfig, option, quoted
from utils.run_folder import clear_run, run_lock, stored_options

STEPS = ("1-rpn", "2-detector", "3-rpn", "4-detector")
N_IMAGE = 5011  # of VOC2007 trainval, for which the papers' numbers of steps are meant


class AlternatingConfig(TrainConfig):
    """python -m research.alternating: Train a detector by the paper's four steps, and write everything to runs/ENV/.

    example: python -m research.alternating --env=four --voc-data-dir=MYDATA --train-split=train --eval-split=val
    """

    rpn_steps: Times = option(
        (),
        "Optimizer",
        "steps of training an RPN: a,b: a at --lr, b at the decayed rate; empty: 60000,20000, in proportion for less "
        "than 5011 images; --max-steps limits each step of the four",
        "paper 3.1.3",
    )
    detector_steps: Times = option(
        (), "Optimizer", "the same of training a detector; empty: 30000,10000, in proportion", "Fast R-CNN 2.3"
    )
    detector_batch_size: Count = option(2, "Optimizer", "--batch-size of training a detector", "Fast R-CNN 2.3")
    n_sample: Count = option(64, "Targets", "RoIs per image", "Fast R-CNN 2.3")
    neg_iou_lo: Share = option(0.1, "Targets", "lowest IoU of a background RoI", "Fast R-CNN 2.3")
    proposals_file: None = option(None, "Proposals", "no option here")
    joint: Literal["approximate"] = option("approximate", "Optimizer", "no option here")
    epoch: None = option(None, "Optimizer", "no option here, see --rpn-steps")
    lr_decay_epoch: None = option(None, "Optimizer", "no option here, see --rpn-steps")
    lr_decay_step: tuple[()] = option((), "Optimizer", "no option here, see --rpn-steps")


def main(config):
    """Train the four steps and write everything to runs/ENV/; `config` is an `AlternatingConfig`."""
    device, folder, changed = start_run(config)
    if "max_steps" in changed:
        raise OptionError("--max-steps: the run was started with another, and each step builds on those before it")
    if config.resume and (folder / "last.pth").exists():
        print(f"{folder}: already finished, nothing is changed")
        return dist.destroy()
    last = max(folder.glob("*/last.pth"), default=None) if config.resume else None
    with dist.main_process_first():
        sets = build_datasets(config, last and ckpt.load_checkpoint(last, mmap=True).get("split_ids"))
    with run_lock(folder):
        if dist.rank() == 0:
            if config.overwrite and not config.resume:
                clear_run(folder)
            ckpt.write_text(folder / "config.json", json.dumps(config.model_dump(), indent=1))
        train_steps(config, device, folder, *sets, changed)
    dist.destroy()
    load_path = quoted(f"{folder}/last.pth")
    print(f"written to {folder}\nnext: python eval.py --load-path={load_path}")


def train_steps(config, device, folder, train_set, eval_set, changed):
    """Train the steps that are not done yet; `changed`: see `fit`."""
    dist.barrier()  # the folder is as the main process leaves it
    net = rois = None
    for name in STEPS:
        part, at = name[2:], folder / name
        options = step_options(config, part, len(train_set)) | {"resume": (at / "last.pth").exists()}
        options = TrainConfig(**config.model_dump(include=TrainConfig.model_fields.keys()) | options)
        dist.barrier()  # every process has seen whether there is a last.pth
        if name in STEPS[:2]:
            net, build_kwargs = build_model(options, train_set.classes, eval_set)
            net.to(device)
        else:
            net.extractor.requires_grad_(False)
        net.rpn.requires_grad_(part == "rpn")
        net.head.requires_grad_(part == "detector")
        if part == "rpn":
            trainer, sets, evaluation = build_trainer(options, net, RPNTrainer), (train_set, eval_set), evaluate_recall
        else:  # the network of step 2 has no RPN yet to be evaluated with
            sets = rois[0], rois[1] if name == STEPS[1] else eval_set
            trainer, evaluation = build_trainer(options, net, FastRCNNTrainer), None
        fit(options, at, trainer, build_kwargs, *sets, evaluation, changed if options.resume else None)
        if part == "rpn":
            given = (train_set, True), (eval_set, False)
            rois = [add_proposals(at, trainer, *pair, config.num_workers) for pair in given]
    if dist.rank() == 0:
        with ckpt.replacing(folder / "last.pth") as partial:
            shutil.copyfile(folder / STEPS[-1] / "last.pth", partial)


def step_options(config, part, n_image):
    """Return the options of training the RPN or the detector, on `n_image` images, that differ from `config`."""
    given, paper = (config.rpn_steps, (60000, 20000)) if part == "rpn" else (config.detector_steps, (30000, 10000))
    steps = given or [max(1, round(number * min(1, n_image / N_IMAGE))) for number in paper]
    *decays, n_step = accumulate(map(int, steps))
    n_step = min(n_step, config.max_steps or n_step)
    batch_size = config.batch_size if part == "rpn" else config.detector_batch_size
    options = {"max_steps": n_step, "epoch": n_step, "lr_decay_step": decays, "lr_decay_epoch": ()}
    return options | {"batch_size": batch_size}


def add_proposals(folder, trainer, dataset, train, num_workers):
    """Give the images of a data set the proposals of the trainer's RPN, which a file in `folder` keeps.

    `train`: see `propose`.
    """
    path = folder / f"proposals_{'train' if train else 'eval'}.npz"
    dist.barrier()  # every process sees the same
    if not (path.exists() and read_proposals(path).keys() >= {*dataset.ids}):  # images may have been added
        rois = propose(trainer.model, dataset, train, trainer.dtype, num_workers)
        if dist.rank() == 0:
            with ckpt.replacing(path) as partial:
                write_proposals(partial, dict(zip(dataset.ids, rois, strict=True)))
        dist.barrier()
    rois = read_proposals(path)
    return WithProposals(dataset, [rois[image_id] for image_id in dataset.ids])


def evaluate_recall(config, trainer, dataset, logger, run, epoch, step):
    """Compute the recall of the proposals on `dataset`, log and print it; arguments as `evaluate_and_save_best`."""
    results = evaluate_proposals(trainer.model, dataset, trainer.dtype, config.num_workers)
    if logger:
        recall = dict(zip(map(str, COUNTS), (row[0] for row in results["recall"]), strict=True))  # at IoU 0.5
        logger.eval(step, epoch, dataset.split, None, {}, recall=recall)
        print(f"epoch {epoch + 1}, step {step}\n{format_recall(results)}")


if __name__ == "__main__":
    errors = (DataError, OptionError, ckpt.CheckpointError, model.WeightsError, TrainingError)
    stored = functools.partial(stored_options, config_class=AlternatingConfig)
    fire.Fire(command(AlternatingConfig, main, errors, stored=stored, defaults=model.defaults))
