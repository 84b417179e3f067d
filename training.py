"""What train.py and research/ share: a run from its options to its files, the loop of an epoch among them.

`start_run` checks it, `build_*` wire options, data, model, trainer and logger; `fit` is the run, `train_one_epoch` the
training itself.
"""

import contextlib
import inspect
import json
import math
import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

import data
import model
import utils.checkpoint as ckpt
import utils.distributed as dist
from data.transforms import TrainDataset
from data.validate import check_objects
from model.utils.anchor_target_creator import AnchorTargetCreator
from model.utils.preprocess import BY_NAME
from model.utils.proposal_target_creator import ProposalTargetCreator
from research.choices import OPTIMIZERS, TRAINERS, rpn_loss
from research.fast_rcnn import FastRCNNTrainer
from trainer import build_optimizer, set_lr
from utils.config import OptionError, counted
from utils.logger import Logger, MetricLogger, read_log
from utils.metrics import draw_detections, evaluate, format_heading, format_results, predict_options, worker_count
from utils.run_folder import RUNS, changed_options, check_run_folder, clear_run, describe_environment

PICTURE_SCORE, N_PICTURE = 0.5, 6  # lowest score, and number of images, of the pictures drawn after an evaluation


class TrainingError(RuntimeError):
    """Training cannot continue; the message says why, where, and what to do."""


def start_run(config):
    """Choose the device, check the folder of the run and its options, and join the other processes.

    Returns:
        device, folder, and the options that a resumed run changes, see `changed_options`.
    """
    device, folder = dist.pick_device(config.device, config.deterministic), RUNS / config.env
    inputs = config.load_path, config.pretrained, config.proposals_file
    check_run_folder(folder, config.resume, config.overwrite, *inputs)
    changed = changed_options(config, model.defaults)
    dist.init_distributed(device)
    return device, folder, changed


def fit(config, folder, trainer, build_kwargs, train_set, eval_set, evaluation=None, changed=None):
    """Train to the last step that `config` states, or, with its `resume`, from last.pth on.

    Args:
        config: `TrainConfig`.
        folder: where the run is written.
        trainer: of `build_trainer`.
        build_kwargs: arguments of `model.build`, for the checkpoints.
        train_set, eval_set: data sets.
        evaluation: called as `evaluate_and_save_best`; None: that one.
        changed: options that a resumed run changes, see `build_logger`.

    Raises:
        SystemExit: a signal came; last.pth is written.
    """
    evaluation, device = evaluation or evaluate_and_save_best, trainer.model.device
    run = {"build": build_kwargs, "config": config.model_dump(), "class_names": list(train_set.classes)}
    run |= {"ids": train_set.ids, "eval_ids": eval_set.ids, "processes": dist.world_size()}
    splits = train_set, eval_set
    run["split_ids"] = {split.split: split.ids for split in splits if getattr(split, "drawn", False)}
    # tell these images from others of equal names
    run["file_sizes"] = {s.split: sorted({os.path.getsize(path) for path in getattr(s, "paths", ())}) for s in splits}
    step = ckpt.resume_training(folder / "last.pth", trainer.model, trainer.optimizer, run) if config.resume else 0
    epoch_steps = steps_per_epoch(config, len(train_set))
    limits = {"--epoch": config.epoch * epoch_steps, "--max-steps": config.max_steps or math.inf}
    n_step = min(limits.values())
    finished = step >= n_step and any(r["kind"] == "eval" for r in read_log(folder / "log.jsonl", step, step))
    dist.barrier()  # every process has read the folder
    if finished:
        names = " and ".join(name for name, limit in limits.items() if limit <= step)
        print(f"{folder}: already finished at step {step}, nothing is changed; a higher {names} continues")
        return
    logger = build_logger(config, folder, step, device, changed) if dist.rank() == 0 else None
    if logger:
        for split in splits:
            ckpt.write_text(folder / f"{Path(split.split).name}.txt", "\n".join([*split.ids, ""]))
    print(f"{folder}: steps {step} to {n_step} on {device}, {'bf16' if trainer.dtype else 'fp32'}")
    interrupted = False
    while not interrupted:
        if step and evaluation_due(config, logger, step, epoch_steps, n_step):
            evaluation(config, trainer, eval_set, logger, run, (step - 1) // epoch_steps, step)
        if step >= n_step:
            break
        epoch, done = divmod(step, epoch_steps)
        batches = epoch_batches(config, len(train_set), epoch)[done : done + n_step - step]
        with dist.catch_signals() as stop:  # elsewhere nothing is lost: a signal ends the program
            step = train_one_epoch(config, trainer, train_set, batches, epoch, step, logger, stop)
            save_last(folder, trainer, run, epoch, step)
        interrupted = dist.any_process(bool(stop))
    if logger:
        logger.close()
    if interrupted:
        print(f"{folder}/last.pth: saved at step {step} of {n_step}, --resume continues")
        dist.destroy()
        raise SystemExit(128 + (stop or [signal.SIGTERM])[0])  # SIGTERM if only another process received a signal


def train_one_epoch(config, trainer, dataset, batches, epoch, step, logger, stop):
    """Train on `batches`, lists of image indices with one per optimizer step; return the global step."""
    local_batches = [batch[dist.rank() :: dist.world_size()] for batch in batches]  # one may be empty at the end
    dataset = TrainDataset(dataset, config.seed, epoch, config.flip_prob)
    workers = {"num_workers": worker_count(config.num_workers, trainer.model.device)}
    workers |= {"worker_init_fn": dist.ignore_signals, "generator": torch.Generator()}  # the global one is for dropout
    loader = DataLoader(dataset, batch_sampler=local_batches, collate_fn=list, **workers)
    metrics, epoch_steps = MetricLogger(), steps_per_epoch(config, len(dataset))
    bar = tqdm(loader, f"epoch {epoch + 1}", unit="step", leave=False, disable=dist.rank() > 0, dynamic_ncols=True)
    for batch, samples in zip(batches, bar, strict=True):
        lr = learning_rate(config, step, epoch, epoch_steps)
        set_lr(trainer.optimizer, lr)
        losses = trainer.train_step(samples, len(batch))
        step += 1
        metrics.update(losses)
        log_now = step % config.plot_every == 0
        if log_now or losses.total.is_cpu or batch is batches[-1]:  # other steps do not synchronize a GPU
            check_finite(losses, step, samples)
            bar.set_postfix(loss=f"{losses.total:.3f}", refresh=False)
        if log_now:
            means = metrics.read(dist.all_reduce) | {"lr": lr}
            if means["same_score"] == 1:
                what = "all RoIs get the same scores, as from features that are all 0"
                print(f"step {step}: {what}: start again with a lower --lr, or check --preprocess")
            if logger:
                logger.train(step, epoch, means)
        if (log_now or losses.total.is_cpu or dist.world_size() == 1) and dist.any_process(bool(stop)):
            break
    return step


def check_finite(losses, step, samples):
    """Raise `TrainingError` if the losses of a step are not finite."""
    if not losses.total.isfinite():
        values = ", ".join(f"{name} {value:g}" for name, value in zip(losses._fields[:4], losses[:4], strict=True))
        since = "" if losses.total.is_cpu else " or since the last point of the curves"  # a GPU is asked only there
        ids = ", ".join(sample.id for sample in samples)
        what = f"step {step}{since}: the loss is not finite ({values}), image {ids}"
        raise TrainingError(f"{what}; last.pth, if there is one, is as it was. Lower --lr, or check the image")


def steps_per_epoch(config, n_image):
    """Return the number of optimizer steps for `n_image` images."""
    return math.ceil(n_image / (config.batch_size * dist.world_size()))


def learning_rate(config, step, epoch, epoch_steps):
    """Return the learning rate (paper 3.1.3) of step `step` in epoch `epoch`, both counted from 0.

    The warm-up ends with the first epoch, of `epoch_steps`, at the latest (torchvision's references/detection).
    """
    passed = [step >= milestone for milestone in config.lr_decay_step]
    passed = passed or [epoch >= milestone for milestone in config.lr_decay_epoch]
    n_warmup = min(config.lr_warmup_steps, epoch_steps)
    warmup = min(1, (step + 1) / n_warmup) if n_warmup else 1
    return config.lr * warmup * config.lr_decay ** sum(passed)


def epoch_batches(config, n_image, epoch):
    """Shuffle the images of an epoch (Fast R-CNN 2.3), one batch of indices per optimizer step of all processes."""
    order = np.random.default_rng([config.seed, epoch, n_image]).permutation(n_image).tolist()
    size = config.batch_size * dist.world_size()
    return [order[i : i + size] for i in range(0, n_image, size)]


def evaluation_due(config, logger, step, epoch_steps, n_step):
    """Whether to evaluate now: after the last step and every `--eval-every` epochs, unless the log has the result."""
    epoch, remainder = divmod(step, epoch_steps)
    due = step >= n_step or (remainder == 0 and config.eval_every and epoch % config.eval_every == 0)
    return due and dist.any_process(logger is not None and not logger.has_eval(step))


def evaluate_and_save_best(config, trainer, dataset, logger, run, epoch, step):
    """Evaluate on `dataset`, log the results, and write best.pth if the mAP is the highest so far."""
    net, dtype = trainer.model, trainer.dtype
    options = predict_options(config, net)
    metric = getattr(dataset, "metric", "voc07")
    evaluation = evaluate(net, dataset, metric, dtype, config.num_workers, **options)
    if logger is None:
        return
    print(f"epoch {epoch + 1}, step {step}\n{format_heading(metric, dtype, **options)}\n{format_results(evaluation)}")
    best = max((record["map"] or 0 for record in logger.records if record.get("split") == dataset.split), default=-1)
    if (evaluation.map or 0) > best:
        ckpt.save_checkpoint(logger.folder / "best.pth", snapshot(trainer, run, epoch, step) | {"map": evaluation.map})
    draw = partial(draw_detections, net, dataset, N_PICTURE, dtype, **options | {"score_thresh": PICTURE_SCORE})
    logger.eval(step, epoch, dataset.split, evaluation.map, evaluation.ap, draw)


def snapshot(trainer, run, epoch, step):
    """Return a checkpoint without the states of optimizer and random generators."""
    model_state = {"model": trainer.model.state_dict(), "preprocessing": tuple(trainer.model.preprocessing)}
    return run | model_state | {"epoch": epoch, "step": step}


def save_last(folder, trainer, run, epoch, step):
    """Write last.pth, with all that resuming needs; raise `TrainingError` if a weight is not finite."""
    if not all(param.isfinite().all() for param in trainer.model.parameters()):
        raise TrainingError(f"step {step}: a weight is not finite; last.pth, if there is one, is as it was. Lower --lr")
    if dist.rank() == 0:
        resumable = {"optimizer": trainer.optimizer.state_dict(), "rng": ckpt.rng_state()}
        ckpt.save_checkpoint(folder / "last.pth", snapshot(trainer, run, epoch, step) | resumable)


def build_datasets(config, split_ids=None):
    """Read and validate the data set; return the splits to train and to evaluate on.

    `split_ids`: ids of splits that the run has drawn, see `data.build`.
    """
    classes = data.read_class_names(config.classes)
    options = config.model_copy(update={"split_ids": split_ids})  # images may have been added
    train_set, eval_set = data.build(config.data, options, (config.train_split, config.eval_split), classes)
    train_set = train_set if config.use_difficult else train_set.without_difficult()
    check_objects(train_set)
    both = {*train_set.ids} & {*eval_set.ids}
    if both and train_set.root == eval_set.root:
        print(f"note: {counted(len(both), 'image')} to train on will be evaluated on, too: mAP will be too high")
    counts = f"{counted(len(train_set), 'image')} to train on, {len(eval_set)} to evaluate on, "
    counts += counted(len(train_set.classes), "class")
    print(f"{train_set.root}: {counts}: {', '.join(train_set.classes)}", *train_set.notes, sep="\n")
    return train_set, eval_set


def build_model(config, classes, eval_set=None):
    """Build the network with the weights of `--load-path`, else `--pretrained`; return it and its build arguments.

    Images of `eval_set` that these weights were trained on are noted.
    """
    torch.manual_seed(config.seed)
    known = inspect.signature(model.find_backbone(config.model).build).parameters.keys() - {"pretrained"}
    kwargs = {"name": config.model, "n_fg_class": len(classes)}
    kwargs |= {name: value for name, value in config.model_dump().items() if name in known}
    preprocessing = None if config.preprocess == "auto" else config.preprocess
    pretrained = backbone = loaded = None
    if config.reset_head and not config.load_path:
        raise OptionError("--reset-head re-initializes the last layers of a detector: name it with --load-path=FILE")
    if config.resume:
        pass  # resume_training restores weights and preprocessing
    elif config.load_path:
        loaded = ckpt.open_checkpoint(config.load_path, config.preprocess, hint=config.model)
        preprocessing = loaded["preprocessing"]
        ckpt.check_compatible(config.load_path, loaded, classes, kwargs, config.reset_head)
        if n_seen := eval_set and ckpt.count_seen(eval_set, loaded):
            print(f"note: {config.load_path} was trained on images with {n_seen} of the ids to evaluate on")
    elif Path(config.pretrained).is_file():
        backbone = ckpt.load_backbone(config.pretrained)
        pretrained, preprocessing = backbone["model"], preprocessing or backbone["preprocessing"]
    elif config.pretrained != "none":  # a name that the backbone knows
        pretrained = config.pretrained
        if preprocessing:
            raise OptionError(f"--preprocess={preprocessing}: these weights state their own, leave it at auto")
    with ckpt.checkpoint_error(config.pretrained) if backbone else contextlib.nullcontext():
        net = model.build(**kwargs, pretrained=pretrained, preprocessing=preprocessing)
    if backbone:
        shown = next((name for name, value in BY_NAME.items() if value == net.preprocessing), net.preprocessing)
        print(f"{config.pretrained}: {backbone['layout']} layout, preprocessing {shown}")
    if loaded:
        ckpt.load_weights(net, loaded, config.load_path, config.reset_head)
    return net, kwargs


def build_trainer(config, net, make_trainer=None):
    """Build optimizer, target creators and trainer; `make_trainer`: its class, None for that of the options."""
    bias = config.bias_lr_mult, config.bias_decay
    optimizer = build_optimizer(net, config.lr, config.momentum, config.weight_decay, *bias)
    optimizer = OPTIMIZERS[config.optimizer](optimizer)
    rpn_ious = config.rpn_pos_iou, config.rpn_neg_iou
    anchor_targets = AnchorTargetCreator(config.rpn_n_sample, *rpn_ious, config.rpn_pos_ratio, config.allowed_border)
    roi_ious = config.pos_iou, config.neg_iou_hi, config.neg_iou_lo
    loc_normalisation = net.loc_mean.tolist(), net.loc_std.tolist()
    roi_targets = ProposalTargetCreator(config.n_sample, config.pos_ratio, *roi_ious, *loc_normalisation)
    dtype = dist.pick_dtype(config.precision, net.device)
    losses = config.rpn_sigma, config.roi_sigma, dtype, rpn_loss(net.rpn, config.rpn_lambda)
    trainer = TRAINERS["padded" if config.batching == "padded" else config.joint]
    make_trainer = make_trainer or (FastRCNNTrainer if config.proposals_file else trainer)
    return make_trainer(net, optimizer, anchor_targets, roi_targets, *losses)


def build_logger(config, folder, step, device, changed=None):
    """Create the folder of the run with config.json and environment.json; return its `Logger`.

    `changed`: options that a resumed run changes, name -> [before, now], are listed and logged.
    """
    if config.overwrite and not config.resume:
        clear_run(folder)
    for path in folder.glob(".[0-9]*"):  # half-written files of a process that was killed
        path.unlink()
    ckpt.write_text(folder / "config.json", json.dumps(config.model_dump(), indent=1))
    ckpt.write_text(folder / "environment.json", json.dumps(describe_environment(device), indent=1))
    visdom_port = config.visdom_port if config.visdom == "auto" else None
    logger = Logger(folder, config.model_dump(), visdom_port, config.tensorboard, step)
    if changed:
        logger.resume(step, changed)
    return logger
