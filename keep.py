"""What a training run keeps, so that nothing is lost: checkpoints, resuming from them, steps that went wrong.

`run` is the `Run` of train.py.
"""
import json
import shutil
from dataclasses import asdict

from model import build
from utils.checkpoint import (
    CheckpointError,
    load_checkpoint,
    load_weights,
    rng_state,
    save_checkpoint,
    set_rng_state,
)
from utils.config import OptionError
from utils.described import check_described
from utils.faults import TrainingFault, all_finite
from utils.files import write_text
from utils.progress import working_on


def model_options(config, n_fg_class):
    """What `model.build` needs to make the network again; plain values, stored in checkpoints."""
    return {"name": "vgg16", "n_fg_class": n_fg_class, "head_width": config.head_width, "dropout": config.dropout,
            "min_size": config.min_size, "max_size": config.max_size, "anchor_scales": config.anchor_scales,
            "anchor_ratios": config.anchor_ratios,
            "proposal": {"nms_thresh": config.rpn_nms_thresh, "min_size": config.rpn_min_size,
                         "n_train_pre_nms": config.n_train_pre_nms, "n_train_post_nms": config.n_train_post_nms,
                         "n_test_pre_nms": config.n_test_pre_nms, "n_test_post_nms": config.n_test_post_nms}}


def state(run, epoch, step):
    """A checkpoint without what only resuming needs."""
    return {"model": run.model.state_dict(), "build": model_options(run.config, len(run.train_set.classes)),
            "class_names": list(run.train_set.classes), "preprocessing": tuple(run.model.preprocessing),
            "config": asdict(run.config), "epoch": epoch, "step": step, "epoch_steps": run.epoch_steps,
            "processes": run.team.size}


def check_room(run):
    """Raises OptionError if the disk has no room for the checkpoints of this run; those of before make room."""
    weights = sum(value.numel() * value.element_size() for value in run.model.state_dict().values())
    trained = sum(param.numel() * param.element_size() for param in run.model.parameters() if param.requires_grad)
    last = weights + trained * (run.config.momentum > 0)
    need = 3 * last + 2 * weights  # last.pth, the one before, the next one while it is written; best.pth, twice
    there = next(folder for folder in (run.folder, *run.folder.absolute().parents) if folder.exists())
    old = [path.stat().st_size for path in run.folder.glob("*.pth*")]
    free = shutil.disk_usage(there).free + sum(old)
    if free < need:
        raise OptionError(f"{run.folder}: the disk has {free / 1e9:.2f} GB for checkpoints, this run needs "
                          f"{need / 1e9:.2f} (a last.pth takes {last / 1e9:.2f}, there are up to three): make room, or "
                          "take a smaller --head-width")


def last_of(run):
    """What a fault did to last.pth, in words."""
    return "last.pth is as it was" if (run.folder / "last.pth").exists() else "there is no last.pth yet"


def save_last(run, epoch, step):
    """Writes last.pth, with all that resuming needs, and keeps the one before as last.pth.1."""
    if not all_finite(run.model.parameters()):  # finite losses, but a gradient that was not
        raise TrainingFault(f"after step {step} there are weights that are not finite, though the losses were: "
                            f"{last_of(run)}. Take a lower --lr, with --resume where there is a last.pth")
    if run.team.rank == 0:
        with working_on("writing last.pth"):
            save_checkpoint(run.folder / "last.pth", state(run, epoch, step) | {
                "optimizer": run.trainer.optimizer.state_dict(), "rng": rng_state()}, keep=True)


def _best_map(path):
    """The mean average precision that best.pth was kept for, 0 for none; -1 if it cannot be read any more."""
    try:
        return float(load_checkpoint(path)["map"] or 0)
    except (CheckpointError, KeyError, TypeError, ValueError):
        print(f"{path} is damaged: the weights of now take its place")
        return -1


def save_best(run, epoch, step, average):
    """Writes the weights to best.pth if their mean average precision, None for nothing to find, was never reached."""
    best = run.folder / "best.pth"
    if not best.exists() or (average or 0) > _best_map(best):
        save_checkpoint(best, state(run, epoch, step) | {"map": average})


def load_state(run):
    """Puts model, optimizer and random state back as last.pth has them; returns the number of steps taken."""
    path = run.folder / "last.pth"
    checkpoint = load_checkpoint(path, resume=True)
    now = {"epoch_steps": run.epoch_steps, "processes": run.team.size}
    then = {name: checkpoint.get(name, value) for name, value in now.items()}
    if then != now:
        raise CheckpointError(f"{path} was written with {then}, now it would be {now}: resume with as many images and "
                              "processes")
    check_described(path, checkpoint, build)
    load_weights(run.model, checkpoint, path)
    run.model.preprocessing = type(run.model.preprocessing)(*checkpoint["preprocessing"])
    try:
        run.trainer.optimizer.load_state_dict(checkpoint["optimizer"])
        for group in run.trainer.optimizer.param_groups:
            [float(group[name]) for name in ("momentum", "dampening", "weight_decay")]
        for param, kept in run.trainer.optimizer.state.items():
            if kept.get("momentum_buffer") is not None and kept["momentum_buffer"].shape != param.shape:
                raise ValueError("a momentum has another shape than its weights")
        set_rng_state(checkpoint["rng"])
    except Exception as error:  # nonsense trips torch in many ways
        raise CheckpointError(f"{path}: its 'optimizer' or 'rng' is not that of this run ({error}): start another run "
                              f"from its weights with --load-path={path}") from error
    return checkpoint["step"]


def check_losses(run, epoch, step, index, losses, wait):
    """Keeps what is to be known of steps whose losses were not finite; raises TrainingFault at one too many.

    Arguments are as for `Guard.seen`. Its update was left out; nonfinite-STEP.json has its images and losses, and of
    the last one nonfinite-STEP.pth the weights with which it began.
    """
    faults = run.guard.seen(step, index, losses, wait)
    for fault in faults:
        number = fault.step + 1
        images = [run.train_set[i].id for i in fault.index]
        values = ", ".join(f"{name} {value:g}" for name, value in fault.losses.items() if name != "total")
        what = f"step {number}: the loss is not finite ({values}), on the image {', '.join(images)}"
        place = run.folder / f"nonfinite-{number:06d}"
        stop = run.guard.n_seen > run.guard.allowed and fault is faults[-1]
        if run.team.rank == 0:
            write_text(f"{place}.json", json.dumps({
                "step": number, "epoch": epoch, "image": images, "index": fault.index, "seed": run.config.seed,
                "losses": {name: str(value) for name, value in fault.losses.items()}}, indent=1, ensure_ascii=False))
            if stop:
                save_checkpoint(f"{place}.pth", state(run, epoch, fault.step))
            else:
                print(f"{what}: left out, see {place}.json")
        if stop:
            run.team.wait()  # torchrun ends all as soon as one has ended
            raise TrainingFault(f"{what}: stopped before it changed anything, see {place}.json and .pth (the weights, "
                                f"for predict.py); {last_of(run)}. Try a lower --lr, look at the image, or leave "
                                "out a few such steps with --skip-nonfinite=N")
