"""The folder of a run, runs/<env>/: who may write there, what it starts with, what a resumed run keeps."""
import contextlib
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

from utils.checkpoint import offer_previous
from utils.config import OptionError, TrainConfig, as_text, check_stored, dashed
from utils.files import check_writable, remove_partial, write_text

RUNS = Path("runs")
# options of a run that a resumed one keeps: they were used at its start, or say what its weights and its order mean
FIXED = ("load_path", "reset_head", "pretrained", "preprocess", "seed", "classes", "train_split", "batch_size",
         "head_width", "frozen_convs", "anchor_scales", "anchor_ratios")


def check_folder(config):
    """Refuses a name that is no plain name, and a run that is there already unless the options say what to do.

    Also a folder into which nothing can be written.
    """
    if config.env in ("", "..") or Path(config.env).name != config.env or len(os.fsencode(config.env)) > 200:
        raise OptionError(f"--env={config.env!r} must be a plain name of 200 bytes at most: it becomes "
                          f"a folder in {RUNS}/")
    if (RUNS / config.env / "config.json").exists() and not (config.resume or config.overwrite):
        raise OptionError(f"{RUNS / config.env} holds an earlier run: go on with --resume, replace it with "
                          "--overwrite, or choose another --env")
    try:
        if (RUNS / config.env).exists() and not (RUNS / config.env).is_dir():
            raise NotADirectoryError(0, "it is a file")
        check_writable(RUNS / config.env)
    except OSError as error:
        raise OptionError(f"{RUNS / config.env}: nothing can be written there ({error.strerror or error}): make room, "
                          "mend the permissions, or start in another folder") from None


def make_folder(config, start):
    """Makes runs/<env>/, empty unless the run is resumed, with config.json, and `start` added to environment.json."""
    folder = RUNS / config.env
    if config.overwrite and not config.resume:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    remove_partial(folder)
    write_text(folder / "config.json", json.dumps(asdict(config), indent=1))
    starts, earlier = folder / "environment.json", []
    if config.resume and starts.exists():
        with contextlib.suppress(ValueError):  # damaged: not worth a run
            earlier = json.loads(starts.read_text(encoding="utf-8"))
    write_text(starts, json.dumps([*earlier, start], indent=1))


def stored_options(options):
    """What config.json of a run says that is to be resumed: only what changes has to be said again."""
    if options.get("resume", "").lower() != "true":
        return {}
    path = RUNS / options.get("env", TrainConfig.env) / "config.json"
    for needed in (path, path.with_name("last.pth")):
        if not needed.is_file():
            raise OptionError(f"--resume: there is nothing to go on with, {needed} is missing: "
                              + (offer_previous(needed) or "start with --overwrite"))
    stored = _read_options(path)
    for name in FIXED:
        was = as_text(stored.get(name))
        if options.get(name, was).lower() != was.lower():
            raise OptionError(f"--{dashed(name)}={options[name]}: this run was started with {was or 'none'}, which "
                              "cannot change: leave it out, or start another run with --env")
    return stored


def _read_options(path):
    """The options in a config.json, name -> value."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            raise OptionError("it holds no options")
        stored = {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
        check_stored(TrainConfig, stored)
    except (OSError, ValueError) as error:  # OptionError is one, too
        copy = path.with_name("last.pth")
        raise OptionError(f"{path} is damaged ({error}): mend it by hand; {copy} holds the options, too, under "
                          "'config'") from None
    return stored
