"""Train Faster R-CNN: `python train.py train --env=voc`.

This script wires options, data, model, trainer and logger; the training itself is `train_one_epoch`.
"""

import contextlib
import inspect
import json
import math
import os
import shutil
import signal
from pathlib import Path

import fire
import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

import data
import model
from data.transforms import TrainDataset
from data.validate import DataError
from model.utils.anchor_target_creator import AnchorTargetCreator
from model.utils.proposal_target_creator import ProposalTargetCreator
from trainer import FasterRCNNTrainer, Losses, build_optimizer, set_lr
from utils import checkpoint as ckpt
from utils import distributed
from utils.config import OptionError, TrainConfig, as_text, command, dashed
from utils.logger import Logger, LogError, MetricLogger
from utils.metrics import evaluate, format_results, worker_count
from utils.vis import comparison

RUNS = Path("runs")
# options that a resumed run must keep: they define its weights, its data or the order of its images
FIXED = ("model", "load_path", "reset_head", "pretrained", "preprocess", "seed", "classes", "train_split", "batch_size")
FIXED += ("head_width", "frozen_convs", "anchor_scales", "anchor_ratios")
PICTURE_SCORE, N_PICTURE = 0.5, 6  # score threshold and number of the images that are drawn after an evaluation


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why, where, and what to do."""


def main(config):
    """Train as a `TrainConfig` says, evaluate, and write everything to runs/ENV/."""
    device = distributed.pick_device(config.device)
    if config.deterministic:
        distributed.set_deterministic()
    folder = RUNS / config.env
    check_run_folder(config, folder)
    distributed.init_distributed(device)
    with distributed.main_process_first():  # it downloads or draws what is missing
        train_set, eval_set = build_datasets(config)
        net, build_kwargs = build_model(config, train_set.classes)
    trainer = build_trainer(config, net.to(device))
    batch_size = config.batch_size * distributed.world_size()
    epoch_steps = math.ceil(len(train_set) / batch_size)
    n_step = min(config.epoch * epoch_steps, config.max_steps or math.inf)
    state = {  # of every checkpoint of this run
        "build": build_kwargs,
        "class_names": list(train_set.classes),
        "config": config.model_dump(),
        "ids": train_set.ids,
        "processes": distributed.world_size(),
    }
    step = resume(folder / "last.pth", trainer, state) if config.resume else 0
    distributed.barrier()  # every process has read the folder
    logger = open_logger(config, folder, step, device) if distributed.rank() == 0 else None
    print(f"{folder}: steps {step} to {n_step} on {device}, {'bf16' if trainer.dtype else 'fp32'}")
    with catch_signals() as stop:
        if step:
            evaluate_if_due(config, trainer, eval_set, logger, state, step, epoch_steps, n_step)
        while step < n_step and not stop:
            epoch = step // epoch_steps
            batches = epoch_batches(len(train_set), batch_size, config.seed, epoch)
            batches = batches[step - epoch * epoch_steps : n_step - epoch * epoch_steps]
            step = train_one_epoch(config, trainer, train_set, batches, epoch, step, logger, stop)
            save_last(folder, trainer, state, epoch, step)
            if not stop:
                evaluate_if_due(config, trainer, eval_set, logger, state, step, epoch_steps, n_step)
    if logger:
        logger.close()
    distributed.destroy()
    if stop:
        raise SystemExit(128 + stop[0])
    print(f"written to {folder}: last.pth, best.pth, log.jsonl, curves.png, pictures/")
    print(f"next: python eval.py --load-path={folder}/last.pth")
    print(f"      python predict.py IMAGE_OR_DIRECTORY --load-path={folder}/last.pth")


def train_one_epoch(config, trainer, dataset, batches, epoch, step, logger, stop):
    """Train on `batches`, lists of image indices, one per optimizer step; return the number of steps taken in all."""
    rank, size = distributed.rank(), distributed.world_size()
    own = [batch[rank::size] for batch in batches]  # a process may have none in the last step of an epoch
    loader = DataLoader(
        TrainDataset(dataset, config.seed, epoch, config.flip_prob),
        batch_sampler=own,
        collate_fn=list,
        num_workers=worker_count(config.num_workers, trainer.model.device),
        worker_init_fn=ignore_signals,
        generator=torch.Generator(),  # the default generator belongs to dropout
    )
    metrics = MetricLogger()
    bar = tqdm(loader, desc=f"epoch {epoch + 1}", unit="step", leave=False, disable=rank > 0, dynamic_ncols=True)
    for batch, samples in zip(batches, bar, strict=True):
        lr = learning_rate(config, step, epoch)
        set_lr(trainer.optimizer, lr)
        losses = trainer.train_step(samples, len(batch))
        step += 1
        metrics.update(losses)
        log_now = step % config.plot_every == 0
        if log_now or batch is batches[-1] or losses.total.is_cpu:  # a GPU waits for the host only here
            check_finite(losses, step, [dataset.ids[i] for i in batch])
            bar.set_postfix(loss=f"{losses.total:.3f}", refresh=False)
        if log_now:
            figures = metrics.read(distributed.all_reduce) | {"lr": lr}
            if logger:
                logger.train(step, epoch, figures)
        if (log_now or size == 1) and distributed.any_process(bool(stop)):
            stop[:] = stop or [signal.SIGTERM]
            break
    return step


def check_finite(losses, step, ids):
    """Raise `TrainingError` if the losses of a step, on the images `ids`, are not finite."""
    if not losses.total.isfinite():
        values = ", ".join(f"{name} {value:g}" for name, value in zip(Losses._fields[:4], losses[:4], strict=True))
        raise TrainingError(
            f"step {step}: the loss is not finite ({values}); image {', '.join(ids)}. last.pth is as it was before. "
            "Lower --lr, or check the annotation of the image"
        )


def learning_rate(config, step, epoch):
    """Return the learning rate of step `step` in epoch `epoch`, both counted from 0."""
    decays = [step >= at for at in config.lr_decay_step] or [epoch >= at for at in config.lr_decay_epoch]
    warmup = min(1, (step + 1) / config.lr_warmup_steps) if config.lr_warmup_steps else 1
    return config.lr * config.lr_decay ** sum(decays) * warmup


def epoch_batches(n_image, batch_size, seed, epoch):
    """Return lists of image indices, one per optimizer step, in the order of an epoch."""
    order = np.random.default_rng([seed, epoch, n_image]).permutation(n_image).tolist()
    return [order[i : i + batch_size] for i in range(0, n_image, batch_size)]


def evaluate_if_due(config, trainer, dataset, logger, state, step, epoch_steps, n_step):
    """Evaluate after the last step and every `--eval-every` epochs, unless the log has the figures already."""
    epoch, rest = divmod(step, epoch_steps)
    due = step == n_step or (rest == 0 and config.eval_every and epoch % config.eval_every == 0)
    if due and distributed.any_process(logger is not None and not logger.has_eval(step)):
        evaluate_and_save_best(config, trainer, dataset, logger, state, (step - 1) // epoch_steps, step)


def evaluate_and_save_best(config, trainer, dataset, logger, state, epoch, step):
    """Evaluate on `dataset`; write the weights to best.pth if their mAP is the highest so far."""
    net, dtype = trainer.model, trainer.dtype
    options = {"nms_thresh": config.nms_thresh, "max_detections": config.max_detections}
    evaluation = evaluate(net, dataset, "voc07", dtype, config.num_workers, score_thresh=config.score_thresh, **options)
    if logger is None:
        return
    best = max((record["map"] or 0 for record in logger.records if record["kind"] == "eval"), default=-1)
    if (evaluation.map or 0) > best:
        ckpt.save_checkpoint(
            logger.folder / "best.pth",
            {
                **state,
                "model": net.state_dict(),
                "preprocessing": tuple(net.preprocessing),
                "epoch": epoch,
                "step": step,
                "map": evaluation.map,
            },
        )
    samples = [dataset[i] for i in range(0, len(dataset), math.ceil(len(dataset) / N_PICTURE))]
    with torch.autocast(net.device.type, dtype, enabled=dtype is not None):
        detections = net.predict([sample.img for sample in samples], score_thresh=PICTURE_SCORE, **options)
    logger.eval(step, epoch, evaluation.map, evaluation.ap, comparison(samples, detections, dataset.classes))
    print(f"epoch {epoch + 1}, step {step}\n{format_results(evaluation)}")


def save_last(folder, trainer, state, epoch, step):
    """Write last.pth, with all that resuming needs."""
    if not all(param.isfinite().all() for param in trainer.model.parameters()):
        raise TrainingError(f"step {step}: weights are not finite; last.pth is as it was before. Lower --lr")
    if distributed.rank() == 0:
        ckpt.save_checkpoint(
            folder / "last.pth",
            {
                **state,
                "model": trainer.model.state_dict(),
                "preprocessing": tuple(trainer.model.preprocessing),
                "epoch": epoch,
                "step": step,
                "optimizer": trainer.optimizer.state_dict(),
                "rng": ckpt.rng_state(),
            },
        )


def resume(path, trainer, state):
    """Load weights, optimizer and random state from last.pth; return the number of steps taken."""
    stored = ckpt.load_checkpoint(path, resume=True)
    for name, what in (("class_names", "classes"), ("ids", "training images"), ("processes", "number of processes")):
        if stored.get(name, state[name]) != state[name]:
            raise ckpt.CheckpointError(
                f"{path}: the {what} differ: {stored[name]!s:.200} in the checkpoint, now {state[name]!s:.200}. "
                "Resume with the same, or start another run with --load-path"
            )
    ckpt.load_weights(trainer.model, stored, path)
    trainer.model.preprocessing = type(trainer.model.preprocessing)(*stored["preprocessing"])
    trainer.optimizer.load_state_dict(stored["optimizer"])
    ckpt.set_rng_state(stored["rng"])
    return stored["step"]


def build_datasets(config):
    """Read and validate the data set; return the splits to train and to evaluate on."""
    if config.download and (config.data, config.voc_data_dir) != (
        "voc",
        TrainConfig.model_fields["voc_data_dir"].default,
    ):
        raise OptionError("--download fetches VOC2007 into datasets/: leave out --data and --voc-data-dir")
    train_set, eval_set = data.build(config.data, config, (config.train_split, config.eval_split), config.classes)
    if not config.use_difficult:
        train_set = train_set.without_difficult()
    if not any(map(len, train_set.bboxes)):
        raise DataError(f"{train_set.root}: the split {config.train_split} has no object to train on")
    print(
        f"{train_set.root}: {len(train_set)} images to train on, {len(eval_set)} to evaluate on, "
        f"{len(train_set.classes)} classes: {', '.join(train_set.classes)}",
        *train_set.notes,
        sep="\n",
    )
    return train_set, eval_set


def build_model(config, classes):
    """Build the network with the weights of `--load-path`, else `--pretrained`; return it and its build arguments."""
    torch.manual_seed(config.seed)
    known = inspect.signature(model.find_backbone(config.model).build).parameters.keys() - {"pretrained"}
    kwargs = {"name": config.model, "n_fg_class": len(classes)}
    kwargs |= {name: value for name, value in config.model_dump().items() if name in known}
    preprocessing = None if config.preprocess == "auto" else config.preprocess
    pretrained = loaded = None
    if config.reset_head and not config.load_path:
        raise OptionError("--reset-head re-initializes the last layers of a detector: name it with --load-path=FILE")
    if config.load_path and not config.resume:
        loaded = ckpt.open_checkpoint(config.load_path, config.preprocess)
        preprocessing = loaded["preprocessing"]
        ckpt.check_compatible(config.load_path, loaded, classes, kwargs, config.reset_head)
    elif config.pretrained in ("imagenet", "caffe") and not config.resume:
        pretrained = config.pretrained
        if preprocessing:
            raise OptionError(
                f"--preprocess={preprocessing}: these weights state their preprocessing, leave it at auto"
            )
    elif config.pretrained != "none" and not config.resume:
        backbone = ckpt.load_backbone(config.pretrained)
        pretrained, preprocessing = backbone["model"], preprocessing or backbone["preprocessing"]
        print(f"{config.pretrained}: {backbone['layout']} layout, preprocessing {preprocessing or 'torchvision'}")
    net = model.build(**kwargs, pretrained=pretrained, preprocessing=preprocessing)
    if loaded:
        ckpt.load_weights(net, loaded, config.load_path, config.reset_head)
    return net, kwargs


def build_trainer(config, net):
    """Build optimizer, target creators and trainer."""
    return FasterRCNNTrainer(
        net,
        build_optimizer(net, config.lr, config.momentum, config.weight_decay),
        AnchorTargetCreator(config.rpn_n_sample, config.rpn_pos_iou, config.rpn_neg_iou, config.rpn_pos_ratio),
        ProposalTargetCreator(
            config.n_sample,
            config.pos_ratio,
            config.pos_iou,
            config.neg_iou_hi,
            config.neg_iou_lo,
            net.loc_mean.tolist(),
            net.loc_std.tolist(),
        ),
        config.rpn_sigma,
        config.roi_sigma,
        distributed.pick_dtype(config.precision, net.device),
    )


def open_logger(config, folder, step, device):
    """Create the folder of the run with config.json and environment.json; return its `Logger`."""
    if config.overwrite and not config.resume:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    ckpt.write_text(folder / "config.json", json.dumps(config.model_dump(), indent=1))
    ckpt.write_text(folder / "environment.json", json.dumps(ckpt.describe_environment(device), indent=1))
    port = config.visdom_port if config.visdom == "auto" else None
    return Logger(folder, config.model_dump(), port, config.tensorboard, step)


def check_run_folder(config, folder):
    """Refuse a name that is no file name, and an earlier run unless it is resumed or overwritten."""
    if config.env in ("", "..") or Path(config.env).name != config.env or len(os.fsencode(config.env)) > 200:
        raise OptionError(f"--env={config.env!r} must be a plain name of at most 200 bytes: it names {RUNS}/ENV/")
    if (folder / "config.json").exists() and not (config.resume or config.overwrite):
        raise OptionError(
            f"{folder} holds an earlier run: continue it with --resume, replace it with --overwrite, or "
            "choose another --env"
        )


def stored_options(texts):
    """Return the options of the run that `--resume` continues, {} without it; `texts` are those of the command line."""
    if texts.get("resume", "").lower() != "true":
        return {}
    path = RUNS / texts.get("env", TrainConfig.model_fields["env"].default) / "config.json"
    if not (path.is_file() and path.with_name("last.pth").is_file()):
        raise OptionError(
            f"--resume: {path.parent} has no config.json and last.pth to continue from: start anew with --overwrite"
        )
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OptionError(
            f"{path} is damaged ({error}): repair it, or take the options under 'config' in last.pth"
        ) from None
    for name in FIXED:
        before = as_text(stored.get(name))
        if texts.get(name, before).lower() != before.lower():
            raise OptionError(
                f"--{dashed(name)}={texts[name]}: this run was started with {before or 'none'}, which cannot "
                "change: leave it out, or start another run with --env"
            )
    return stored


@contextlib.contextmanager
def catch_signals():
    """Collect SIGINT and SIGTERM in a list instead of stopping at once; a second signal exits immediately."""
    stop = []

    def handle(number, frame):
        if stop:
            os._exit(128 + number)
        stop.append(number)
        os.write(2, b"\nfinishing the step, then saving last.pth; once more: exit at once without saving\n")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals(*_):
    """Let workers ignore signals to the process group: the main process still needs them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    errors = (DataError, ckpt.CheckpointError, model.WeightsError, LogError, TrainingError)
    fire.Fire({"train": command(TrainConfig, main, errors, stored=stored_options, defaults=model.defaults)})
