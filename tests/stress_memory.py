"""Whether a long run leaks: 3000 steps on small images, then the evaluation of 5000.

    OMP_NUM_THREADS=1 python tests/soak.py [--steps=3000] [--images=5000] [--workers=2] [--out=soak.png]

Prints a table with memory of the process (resident, and what of it is in use: the rest are holes that the allocator
keeps, see utils/device.py), of those that read images, open files and speed, and draws them. For Linux with glibc.
"""
import contextlib
import ctypes
import os
import sys
import tempfile
import time
from pathlib import Path

import fire
import matplotlib
import numpy as np

matplotlib.use("agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tiny import OPTIONS, narrow_vgg16, write_tiny  # noqa: E402

import train  # noqa: E402
from data.voc import VOCDataset  # noqa: E402
from eval import evaluate, open_checkpoint  # noqa: E402
from model import restore  # noqa: E402
from utils.config import TrainConfig, make_config  # noqa: E402
from utils.log import Log  # noqa: E402

COLUMNS = ("step", "MB", "MB in use", "MB of readers", "open files", "images a second")
GLIBC = ctypes.CDLL(None)


class MallInfo(ctypes.Structure):
    """What glibc's mallinfo2() returns."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]


GLIBC.mallinfo2.restype = MallInfo


def resident(pid="self"):
    """Resident memory of a process in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def sample(step, speed):
    """One row of the table; COLUMNS."""
    readers = 0.0
    for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        with contextlib.suppress(OSError, StopIteration):  # it has just ended
            readers += resident(pid)
    heap = GLIBC.mallinfo2()
    in_use = (heap.uordblks + heap.hblkhd) / 2**20  # in the heap, and blocks with pages of their own
    return step, resident(), in_use, readers, len(os.listdir("/proc/self/fd")), speed


def soak_training(folder, steps, workers):
    """Trains; a row every 50 steps."""
    rows = []

    class Sampling(Log):
        """A log that takes a row with every line."""

        def training(self, step, epoch, figures):
            """Take a row."""
            super().training(step, epoch, figures)
            rows.append(sample(step, figures["images_per_second"]))

    train.open_log = lambda where, options, start_step: Sampling(where, options, start_step=start_step)
    train.train(make_config(TrainConfig, OPTIONS | {
        "voc_data_dir": str(folder / "voc"), "env": "soak", "train_split": "train", "eval_split": "val",
        "max_steps": str(steps), "epoch": "999", "eval_every": "3", "plot_every": "50", "num_workers": str(workers)}))
    return np.array(rows)


def soak_evaluation(folder):
    """Evaluates; a row every 100 images."""
    rows = []

    class Sampling(VOCDataset):
        """A data set that takes a row now and then."""

        def __getitem__(self, index):
            """Take a row, if it is time."""
            if index % 100 == 0:
                now = time.monotonic()
                rows.append(sample(index, 100 / (now - self.since) if index else np.nan))
                self.since = now
            return super().__getitem__(index)

    model = restore(open_checkpoint("runs/soak/last.pth"))
    dataset = Sampling(folder / "voc", "many", ("square",))
    print(f"evaluation: mAP {evaluate(model, dataset, num_workers=0).map:.3f} on {len(dataset)} images")
    return np.array(rows)


def show(name, rows):
    """Prints ten rows, and how memory, files and speed of the last quarter differ from those of the second."""
    print(f"\n{name}\n" + "  ".join(f"{column:>15}" for column in COLUMNS))
    for row in rows[np.linspace(0, len(rows) - 1, 11).astype(int)]:
        print("  ".join(f"{value:15.1f}" for value in row))
    quarter = len(rows) // 4
    early, late = rows[quarter:2 * quarter].mean(0), rows[-quarter:].mean(0)
    print("last quarter less the second: " + ", ".join(
        f"{column} {after - before:+.1f}" for column, before, after in zip(COLUMNS, early, late, strict=True)
        if column != "step"))


def main(steps=3000, images=5000, workers=2, out="soak.png"):
    """Trains, evaluates, prints, draws; see the top of the file."""
    out = Path(out).absolute()
    narrow_vgg16()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tiny(folder / "voc", {"train": 200, "val": 8, "many": images})
        os.chdir(folder)
        parts = {f"training, {steps} steps": soak_training(folder, steps, workers)}
        parts[f"evaluation, {images} images"] = soak_evaluation(folder)
        os.chdir(ROOT)
    figure, axes = plt.subplots(2, 5, figsize=(19, 7), layout="constrained")
    for line, (name, rows) in zip(axes, parts.items(), strict=True):
        show(name, rows)
        for axis, column, values in zip(line, COLUMNS[1:], rows.T[1:], strict=True):
            axis.plot(rows[:, 0], values)
            axis.set_ylim(0, max(np.nanmax(values) * 1.15, 1))
            axis.set_title(f"{name}: {column}", fontsize="medium")
    figure.savefig(out)
    print(f"\ndrawn in {out}")


if __name__ == "__main__":
    fire.Fire(main)
