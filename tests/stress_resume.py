"""Kills a training at random moments, resumes it, and compares what it ends with to an undisturbed one, bit for bit.

    OMP_NUM_THREADS=1 python tests/kill.py [--kills=24] [--seed=0]

Every third kill waits for the moment in which a checkpoint is being written, the others come after a random time; a
run that ends before all kills are done is compared, and started anew.
"""
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import fire
import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tiny import OPTIONS, narrow_vgg16, write_tiny  # noqa: E402

from train import train  # noqa: E402
from utils.config import TrainConfig, make_config  # noqa: E402
from utils.run_folder import stored_options  # noqa: E402

RUN = OPTIONS | {"voc_data_dir": "voc", "train_split": "train", "eval_split": "val", "epoch": "4", "lr_decay_step": "9"}


def start(env, resume):
    """Trains in a process of its own, in the current folder; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        narrow_vgg16()
        with open("output.txt", "w") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                options = {"env": env, "resume": "True"} if resume else RUN | {"env": env, "overwrite": "True"}
                train(make_config(TrainConfig, options, stored_options(options)))
                code = 0
            except BaseException:
                traceback.print_exc()
    finally:
        os._exit(code)


def end(pid, kill_after=None, while_writing=None):
    """Waits for a process; kills it after some seconds, or when a file of the pattern is there. Whether it was."""
    since, killed = time.monotonic(), False
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        late = kill_after is not None and time.monotonic() - since > kill_after
        if not killed and (late or (while_writing and any(Path().glob(while_writing)))):
            os.kill(pid, signal.SIGKILL)
            killed = True
        time.sleep(0.002)
    return killed


def records(folder):
    """The lines of log.jsonl without the speed."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def same(one, other):
    """Whether two trees of tensors and plain values are equal, bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def differences(calm, killed):
    """What two folders of runs do not have in common, of what they should."""
    found = []
    for name, keys in (("last.pth", ("model", "optimizer", "rng", "epoch", "step")), ("best.pth", ("model", "map"))):
        one, other = (torch.load(folder / name, weights_only=True) for folder in (calm, killed))
        found += [f"{name}: {key}" for key in keys if not same(one[key], other[key])]
    if records(calm) != records(killed):
        found.append("log.jsonl")
    return found + [path.name for path in killed.glob(".*")]


def survive(kills, rng):
    """Trains in the current folder, where the data set is in voc/; yields a line for each kill and each comparison."""
    since = time.monotonic()
    end(start("calm", resume=False))
    whole, n_killed, resumed = time.monotonic() - since, 0, 0
    folder = Path("runs/killed")
    yield f"undisturbed: {whole:.1f} seconds"
    while True:
        resume = (folder / "last.pth").exists() and (folder / "config.json").exists()
        pid = start("killed", resume)
        resumed += resume
        if n_killed < kills:
            writing = "runs/killed/.*.last.pth" if n_killed % 3 == 2 else None
            done = not end(pid, None if writing else rng.uniform(0.1, whole), writing)
        else:
            done = not end(pid)
        n_killed += not done
        if done:
            text = Path("output.txt").read_text()
            if "Traceback" in text:
                raise AssertionError(text)
            found = differences(Path("runs/calm"), folder)
            yield f"ended after {n_killed} kills, resumed {resumed} times: {', '.join(found) or 'all equal'}"
            if found or n_killed >= kills:
                return
            for path in folder.glob("*.pth*"):
                path.unlink()
        else:
            lines = (folder / "log.jsonl").read_text().splitlines() if (folder / "log.jsonl").exists() else []
            left = ", ".join(path.name for path in folder.glob(".*")) or "nothing"
            yield f"kill {n_killed}: {len(lines)} lines in the log, half written: {left}"


def main(kills=24, seed=0):
    """Prints what happened; see the top of the file."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        write_tiny(Path("voc"), {"train": 6, "val": 3})
        for line in survive(kills, np.random.default_rng(seed)):
            print(line, flush=True)
        os.chdir(ROOT)


if __name__ == "__main__":
    fire.Fire(main)
