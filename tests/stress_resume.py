"""Kill a training at random moments, resume it, and compare its end with an undisturbed run, bit for bit.

    OMP_NUM_THREADS=1 python tests/stress_resume.py [--kills=20] [--seed=0]

Every third kill waits for the moment in which last.pth is being written; the others come after a random time. A run
that ends before all kills are done is compared and started anew.
"""

import contextlib
import json
import os
import shutil
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

from fixtures import OPTIONS, narrow_vgg16, write_voc  # noqa: E402

import model  # noqa: E402
import train  # noqa: E402
from utils.command import parse_options  # noqa: E402
from utils.config import TrainConfig  # noqa: E402
from utils.run_folder import stored_options  # noqa: E402

RUN = OPTIONS | {"epoch": "2", "lr_decay_step": "9"}


def run(**options):
    """Train in the current folder; options are texts as on a command line."""
    stored = stored_options(options)
    texts = options if stored else RUN | options
    train.main(parse_options(TrainConfig, texts, stored, model.defaults))


def start(prepare=None, output="output.txt", **options):
    """Train in a process of its own, which calls `prepare` first; return its id. Its output goes to a file."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        torch.set_num_threads(1)
        narrow_vgg16()
        with open(output, "w") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                if prepare:
                    prepare()
                run(**options)
                code = 0
            except SystemExit as caught:
                code = caught.code
            except BaseException:
                traceback.print_exc()
    finally:
        os._exit(code)


def wait(pid, kill_after=600, kill_when=None):
    """Wait for a process, or kill it after some seconds or when a file matches a pattern; return its exit code.

    Returns:
        -9 if it was killed.
    """
    since = time.monotonic()
    while (result := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() - since > kill_after or (kill_when and any(Path().glob(kill_when))):
            os.kill(pid, signal.SIGKILL)
            result = os.waitpid(pid, 0)
            break
        time.sleep(0.001)
    return os.waitstatus_to_exitcode(result[1])


def log(folder, kind=None):
    """Return the records of log.jsonl, without the speed."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    records = [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]
    return [record for record in records if kind in (None, record["kind"])]


def same(one, other):
    """Whether two trees of tensors and plain values are equal, bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def differences(calm, other):
    """List what differs between the folders of two runs that must be equal."""
    found = []
    for name in ("last.pth", "best.pth"):
        one, two = (torch.load(folder / name, weights_only=True) for folder in (calm, other))
        found += [f"{name}: {key}" for key in one.keys() | two.keys() if key not in one or key not in two]
        found += [f"{name}: {key}" for key in one.keys() & two.keys() - {"config"} if not same(one[key], two[key])]
    if log(calm) != log(other):
        found.append("log.jsonl")
    return found + [path.name for path in other.glob(".*")]


def kill_and_resume(kills, rng, **options):
    """Train in the current folder, with the data set in voc/; yield a line per kill and per comparison.

    Raises:
        AssertionError: a run failed, or ended with something else than the undisturbed one.
    """
    since = time.monotonic()
    assert wait(start(env="undisturbed", **options)) == 0, Path("output.txt").read_text()
    whole, n_killed, n_resumed = time.monotonic() - since, 0, 0
    folder = Path("runs/killed")
    yield f"undisturbed: {whole:.1f} seconds"
    while True:
        resume = (folder / "last.pth").exists() and (folder / "config.json").exists()
        pid = start(env="killed", **({"resume": "True"} if resume else options | {"overwrite": "True"}))
        n_resumed += resume
        if n_killed >= kills:
            code = wait(pid)
        elif n_killed % 3 == 2:
            code = wait(pid, kill_when=f"runs/killed/.{pid}.last.pth")
        else:
            code = wait(pid, kill_after=rng.uniform(0.1, whole))
        if code == 0:
            found = differences(Path("runs/undisturbed"), folder)
            assert not found, found
            yield f"ended after {n_killed} kills, resumed {n_resumed} times: all equal"
            if n_killed >= kills:
                return
            shutil.rmtree(folder)
        else:
            assert code == -signal.SIGKILL, Path("output.txt").read_text()
            n_killed += 1
            n_line = len((folder / "log.jsonl").read_text().splitlines()) if (folder / "log.jsonl").exists() else 0
            partial = ", ".join(path.name for path in folder.glob(".*")) or "nothing"
            yield f"kill {n_killed}: {n_line} lines in the log, half written: {partial}"


def main(kills=20, seed=0):
    """Print what happened; see the top of the file."""
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        write_voc(Path("voc"), {"train": 6, "val": 3})
        for line in kill_and_resume(kills, np.random.default_rng(seed), epoch="4"):
            print(line, flush=True)
        os.chdir(ROOT)


if __name__ == "__main__":
    fire.Fire(main)
