"""The folder of a run, runs/ENV/: who may write it, and the options with which it was started."""

import contextlib
import json
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from utils.command import parse_options, restore_options
from utils.config import OptionError, TrainConfig, as_text, dashed, quoted
from utils.distributed import rank

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

RUNS, LOCK = Path("runs"), ".lock"
# options that a resumed run keeps: they define its weights, its data or the order of its images
FIXED_OPTIONS = ("model", "load_path", "reset_head", "pretrained", "preprocess", "seed", "train_split")
FIXED_OPTIONS += ("val_ratio", "batch_size", "head_width", "frozen_convs", "trainable_layers", "batch_norm")
FIXED_OPTIONS += ("anchor_scales", "anchor_ratios", "roi_op", "rpn_objectness", "optimizer")
FIXED_OPTIONS += ("rpn_steps", "detector_steps", "detector_batch_size")  # of research/alternating.py
# options whose change on a resume is not worth a note: they say how a run is started and shown, not what it does
START_OPTIONS = ("env", "resume", "overwrite", "download", "num_workers", "visdom", "visdom_port", "tensorboard")


def check_run_folder(folder: Path, resume: bool, overwrite: bool, *inputs: str | None) -> None:
    """Raise OptionError for a name that is no file name, or an earlier run that is neither resumed nor replaced.

    `inputs`: files that the run starts from, which `overwrite` must not delete.
    """
    name = folder.name
    if folder.parent != RUNS or name in ("", "..") or len(os.fsencode(name)) > 200:
        raise OptionError(f"--env must be a plain name of at most 200 bytes, it names the folder {RUNS}/ENV/")
    kept = [*folder.rglob("[!.]*.pth"), *folder.glob("pictures/*.png")]  # else it ended within its first epoch
    if kept and not (resume or overwrite):
        ways = "--resume continues that run, --overwrite deletes it; or choose another --env"
        raise OptionError(f"{folder} exists: {ways}")
    for path in filter(None, inputs if overwrite and not resume else ()):
        if folder.resolve() in Path(path).resolve().parents:
            raise OptionError(f"--overwrite would delete {path}: choose another --env")


@contextlib.contextmanager
def run_lock(folder: Path):
    """Keep the folder of a run, which is created, for this process while the block runs.

    Raises:
        OptionError: Another process keeps it.
    """
    if not fcntl or rank() > 0:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("wb") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise OptionError(f"another training writes {folder}: wait for its end, or choose another --env") from None
        except OSError:
            pass  # a file system without locks
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)


def clear_run(folder: Path) -> None:
    """Delete what the folder of a run holds, but for its lock."""
    for path in folder.glob("*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK:
            path.unlink()


def stored_options(texts: dict, config_class: type[TrainConfig] = TrainConfig) -> dict:
    """Return the options of the run that `--resume` continues, {} without it; `texts` are those of the command line."""
    if texts.get("resume", "").lower() != "true":
        return {}
    path = RUNS / texts.get("env", TrainConfig.model_fields["env"].default) / "config.json"
    if not path.parent.is_dir():
        there = ", ".join(sorted(config.parent.name for config in RUNS.glob("*/config.json"))) or "none"
        raise OptionError(f"--resume: {path.parent} does not exist, see --env; runs that are there: {there}")
    weights = sorted(path.parent.rglob("[!.]*.pth"), key=lambda file: (len(file.parts), file.name != "last.pth"))
    if not (path.is_file() and any(file.name == "last.pth" for file in weights)):  # of a schedule, it may be below
        advice = f"--env=NEW --load-path={quoted(weights[0])} starts from its weights" if weights else ""
        lacks = "last.pth" if path.is_file() else "config.json"
        raise OptionError(f"--resume: {path.parent} lacks {lacks}: {advice or 'start again with --overwrite'}")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if ("rpn_steps" in stored) == ("rpn_steps" in config_class.model_fields):
            return restore_options(config_class, stored)
    except (ValueError, AttributeError) as error:
        raise OptionError(f"{path} is damaged ({error}): last.pth has the same options under 'config'") from None
    raise OptionError(f"{path.parent} is a run of another command, train.py or research.alternating: resume with it")


def changed_options(config: TrainConfig, defaults) -> dict[str, list]:
    """Return the options that a resumed run changes, name -> [before, now]; `defaults`: see `command.command`.

    Raises:
        OptionError: One of FIXED_OPTIONS changes.
    """
    stored = stored_options({"env": config.env, "resume": str(config.resume)}, type(config))
    before = parse_options(type(config), {}, stored, defaults).model_dump() if stored else {}
    changed = {name: [value, getattr(config, name)] for name, value in before.items() if name not in START_OPTIONS}
    changed = {name: [old, new] for name, (old, new) in changed.items() if old != new}
    for name in filter(changed.__contains__, FIXED_OPTIONS):  # the model before what follows from it
        old, new = map(as_text, changed[name])
        what = f"the run was started with {old or 'none'}, which cannot change"
        raise OptionError(f"--{dashed(name)}={new}: {what}; leave it out, or start another run with --env")
    return changed


def describe_environment(device: torch.device) -> dict:
    """Return what results depend on besides the options: versions, device, threads and the git commit."""
    root = Path(__file__).parent.parent
    git = ["git", f"--git-dir={root / '.git'}", f"--work-tree={root}"]  # not the repository of a folder above
    git += ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    done = subprocess.run(git, capture_output=True, text=True) if shutil.which("git") else None
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    versions = {name: metadata.version(name) for name in ("torch", "torchvision", "numpy")}
    machine = {"device": gpu or f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"}
    machine |= {"threads": torch.get_num_threads(), "python": platform.python_version()}
    return versions | machine | {"commit": (done and done.stdout.strip()) or None}
