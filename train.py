"""Trains Faster R-CNN: `python train.py train --env=voc`.

Everything is wired here: options, data, model, trainer, log. The loop is `train` and `train_epoch`.
"""
import contextlib
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import fire
import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from check_data import check
from data import class_names, find_root
from data.check import DataError, Findings, check_objects
from data.transforms import TrainTransform
from data.voc import VOCDataset
from eval import check_start, evaluate, heading, open_checkpoint, predict_options, table, worker_count
from fit_anchors import fit_anchors
from keep import check_losses, check_room, load_state, model_options, save_best, save_last
from model import WeightsError, build
from model.faster_rcnn import FasterRCNN
from model.utils.anchor_target_creator import AnchorTargetCreator
from model.utils.proposal_target_creator import ProposalTargetCreator
from trainer import FasterRCNNTrainer, Losses
from utils.checkpoint import CheckpointError, load_backbone, load_weights
from utils.config import AnchorConfig, CheckConfig, OptionError, TrainConfig, command
from utils.device import be_deterministic, pick_device, pick_dtype
from utils.dist import ALONE, Team, join_team
from utils.environment import describe_environment
from utils.faults import Guard, TrainingFault, reading
from utils.interrupt import catch_signals, ignore_signals
from utils.log import LogError, NoLog, open_log
from utils.meter import Meter
from utils.pictures import comparison
from utils.progress import working_on
from utils.run_folder import RUNS, check_folder, make_folder, stored_options

FAULTS = DataError, CheckpointError, WeightsError, LogError, TrainingFault  # one line each, no stack trace
PICTURE_SCORE, N_PICTURE = 0.5, 6  # the pictures of a run: detections that are at least so sure, in so many images


class Run(NamedTuple):
    """What a training run works with."""

    config: TrainConfig
    folder: Path
    train_set: VOCDataset
    eval_set: VOCDataset
    model: FasterRCNN
    trainer: FasterRCNNTrainer
    meter: Meter
    n_step: int  # optimizer steps in all
    epoch_steps: int  # optimizer steps in one epoch
    guard: Guard  # knows of losses that are not finite
    team: Team = ALONE  # the processes that train together


def train(config):
    """Trains as a `TrainConfig` says, evaluates, and keeps everything in runs/<env>/."""
    run = open_run(config)
    check_room(run)
    step = load_state(run) if config.resume else 0
    device, writes = run.model.loc_std.device, run.team.rank == 0
    run.team.wait()  # all have looked into the folder, and nothing can go wrong any more
    if writes:
        make_folder(config, {"step": step, "seed": config.seed, "processes": run.team.size}
                    | describe_environment(device))
    print(f"{run.folder}: steps {step} to {run.n_step} on {device}, {'bf16' if run.trainer.dtype else 'fp32'}"
          + f", {run.team.size} processes" * (run.team.size > 1))
    log = open_log(run.folder, asdict(config), step) if writes else NoLog()
    with contextlib.closing(log), catch_signals(run.team) as interrupt:
        test_if_due(run, log, interrupt, step)  # an evaluation that was interrupted
        while step < run.n_step:
            epoch = step // run.epoch_steps
            end = min((epoch + 1) * run.epoch_steps, run.n_step)
            step = train_epoch(run, log, interrupt, epoch, range(step, end))
            save_last(run, epoch, step)
            interrupt.leave()
            test_if_due(run, log, interrupt, step)
    run.team.leave()
    print(f"written to {run.folder}: last.pth, best.pth, log.jsonl, curves.png, pictures\n"
          f"next: python eval.py --load-path={run.folder}/last.pth\n"
          f"      python predict.py IMAGE_OR_FOLDER --load-path={run.folder}/last.pth")


def train_epoch(run, log, interrupt, epoch, steps):
    """Takes the optimizer steps `steps`, a range of numbers in epoch `epoch`; returns how many were taken in all."""
    config, dataset, team = run.config, run.train_set, run.team
    indices = batches(len(dataset), config.batch_size * team.size, config.seed, epoch)
    indices = indices[steps.start - epoch * run.epoch_steps:][:len(steps)]  # an interrupted epoch goes on inside
    own = [index[team.rank::team.size] for index in indices]  # none, where an epoch ends before all have one
    loader = DataLoader(dataset, batch_sampler=own, collate_fn=list,
                        num_workers=worker_count(config.num_workers, run.model.loc_std.device),
                        worker_init_fn=ignore_signals,
                        generator=torch.Generator())  # else it draws from torch's own, which dropout uses
    transform = TrainTransform(run.model.prepare, config.flip_prob)
    meter, shown = run.meter, 0.0
    meter.start()
    with reading(loader) as batch, tqdm(total=run.n_step, initial=steps.start, desc=f"epoch {epoch + 1}",
                                        unit="step", leave=False, disable=team.rank > 0) as bar:
        for step, index, mine, samples in zip(steps, indices, own, batch, strict=True):
            lr = learning_rate(config, step, epoch)
            run.trainer.set_lr(lr)
            rngs = [np.random.default_rng([config.seed, epoch, i]) for i in mine]
            pairs = zip(samples, rngs, strict=True)
            losses = run.trainer.train_step([transform(*pair) for pair in pairs], len(index))
            meter.add(losses, len(index))
            plot = (step + 1) % config.plot_every == 0
            wait = plot or step + 1 == steps.stop or losses.total.is_cpu  # a GPU is not waited for at other steps
            check_losses(run, epoch, step, index, losses, wait)
            bar.update()
            if time.monotonic() - shown > 1:  # a GPU need not wait more often for its numbers to be read
                bar.set_postfix({name: f"{loss:.3f}" for name, loss in zip(Losses._fields, losses, strict=True)})
                shown = time.monotonic()
            if plot:
                log.training(step + 1, epoch, meter.read(team.add_up) | {"lr": lr})
                if log.watched:
                    log.picture("training image", draw(run, samples[-1:]), step + 1)
            if interrupt.asked(wait):
                return step + 1
    return steps.stop


def test_if_due(run, log, interrupt, step):
    """Evaluates after the last step and every `--eval-every` epochs, unless the log has it already."""
    epoch, rest = divmod(step, run.epoch_steps)
    due = step == run.n_step or (rest == 0 and run.config.eval_every and epoch % run.config.eval_every == 0)
    if step and due and run.team.any(not log.evaluated(step)):
        with interrupt.at_once(), reading(()):
            test(run, log, (step - 1) // run.epoch_steps, step)


def test(run, log, epoch, step):
    """Evaluates on the split for that, and keeps the weights in best.pth if they were never better."""
    options = predict_options(run.config)
    evaluation = evaluate(run.model, run.eval_set, "voc07", run.trainer.dtype, run.config.num_workers, team=run.team,
                          **options)
    if run.team.rank > 0:
        return
    save_best(run, epoch, step, evaluation.map)
    with working_on("drawing pictures"):
        some = range(0, len(run.eval_set), math.ceil(len(run.eval_set) / N_PICTURE))
        log.evaluation(step, epoch, evaluation.map, evaluation.ap, draw(run, [run.eval_set[i] for i in some]))
    print(f"epoch {epoch + 1}, step {step}\n{heading('voc07', run.trainer.dtype, **options)}\n{table(evaluation)}")


def draw(run, samples):
    """A sheet with what is in some images beside what the model sees in them."""
    options = predict_options(run.config) | {"score_thresh": PICTURE_SCORE}
    with torch.autocast(run.model.loc_std.device.type, run.trainer.dtype, enabled=run.trainer.dtype is not None):
        detections = run.model.predict([sample.img for sample in samples], **options)
    return comparison(samples, detections, run.train_set.classes)


def learning_rate(config, step, epoch):
    """The rate of the weights in step `step`, epoch `epoch`, both counted from 0."""
    passed = [step >= at for at in config.lr_decay_step] or [epoch >= at for at in config.lr_decay_epoch]
    return config.lr * config.lr_decay ** sum(passed)


def batches(n_image, batch_size, seed, epoch):
    """Lists of image indices, one an optimizer step, in the order of an epoch: the same whenever it is asked for."""
    order = np.random.default_rng([seed, epoch, n_image]).permutation(n_image).tolist()
    return [order[i:i + batch_size] for i in range(0, n_image, batch_size)]


def open_run(config):
    """Opens data, model and trainer; writes nothing yet."""
    device = pick_device(config.device)
    if config.deterministic:
        be_deterministic()
    check_folder(config)
    team = join_team(device)
    with team.first_alone():  # it fetches data and weights, where they are not there
        train_set, eval_set = open_data(config)
        model = open_model(config, train_set.classes).to(device)
    meter, guard = Meter(), Guard(config.skip_nonfinite)
    trainer = FasterRCNNTrainer(
        model,
        AnchorTargetCreator(config.rpn_n_sample, config.rpn_pos_iou, config.rpn_neg_iou, config.rpn_pos_ratio),
        ProposalTargetCreator(config.n_sample, config.pos_ratio, config.pos_iou, config.neg_iou_hi, config.neg_iou_lo,
                              model.loc_mean.tolist(), model.loc_std.tolist()),
        config.rpn_sigma, config.roi_sigma, config.lr, config.momentum, config.weight_decay,
        pick_dtype(config.precision, device), team.add_up if team.size > 1 else None,
        meter.watch, guard)
    epoch_steps = math.ceil(len(train_set) / (config.batch_size * team.size))
    n_step = min(config.epoch * epoch_steps, config.max_steps or math.inf)
    return Run(config, RUNS / config.env, train_set, eval_set, model, trainer, meter, n_step, epoch_steps, guard, team)


def open_data(config):
    """Checks the data set; returns the splits to train and to evaluate on."""
    if config.download and (config.data != "voc" or config.voc_data_dir != TrainConfig.voc_data_dir):
        raise OptionError("--download fetches VOC2007 into datasets/: leave out --data and --voc-data-dir")
    root = find_root(config.data, config.voc_data_dir, config.download)
    findings = Findings()
    classes = class_names(config.classes, root, (config.train_split, config.eval_split), findings)
    train_set = VOCDataset(root, config.train_split, classes, config.use_difficult, config.invalid_boxes, findings)
    eval_set = VOCDataset(root, config.eval_split, classes, invalid_boxes=config.invalid_boxes, findings=findings)
    check_objects(train_set.objects()[0], config.train_split, findings)
    findings.raise_errors()
    print(f"{root}: {len(train_set)} images to train on, {len(eval_set)} to evaluate on, {len(classes)} classes: "
          + ", ".join(classes), *findings.noted(), sep="\n")
    return train_set, eval_set


def open_model(config, classes):
    """The network for these classes, its weights those of `--load-path`, else of `--pretrained`, else random."""
    torch.manual_seed(config.seed)
    preprocessing = None if config.preprocess == "auto" else config.preprocess
    start = pretrained = None
    if config.reset_head and not config.load_path:
        raise OptionError("--reset-head starts the last layers of a detector anew: name it with --load-path=FILE")
    if config.resume:  # load_state brings weights and preprocessing
        pass
    elif config.load_path:
        start = open_checkpoint(config.load_path, config.preprocess)
        preprocessing = start["preprocessing"]
        check_start(start, classes, config)
    elif config.pretrained in ("imagenet", "caffe"):
        pretrained = config.pretrained
        if preprocessing:
            raise OptionError(f"--preprocess={preprocessing}: these weights come with what they want, leave it at auto")
    elif config.pretrained != "none":
        backbone = load_backbone(config.pretrained)
        pretrained, preprocessing = backbone["model"], preprocessing or backbone["preprocessing"]
        print(f"{config.pretrained}: a VGG16 in the layout of {backbone['layout']}, preprocessing "
              f"{preprocessing or 'torchvision (--preprocess=caffe if it was converted from Caffe)'}")
    frozen_convs = config.frozen_convs
    if frozen_convs is None:  # here, since weights from a checkpoint are not random either
        frozen_convs = 0 if config.pretrained == "none" else 4
    model = build(**model_options(config, len(classes)), frozen_convs=frozen_convs, pretrained=pretrained,
                  preprocessing=preprocessing)
    if start:
        load_weights(model, start, config.load_path, config.reset_head)
    return model


if __name__ == "__main__":
    fire.Fire({"train": command(TrainConfig, train, FAULTS, stored=stored_options),
               "check": command(CheckConfig, check, (DataError,)),
               "anchors": command(AnchorConfig, fit_anchors, (DataError,))})
