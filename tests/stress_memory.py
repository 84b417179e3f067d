"""Check that a long run leaks nothing: many steps on small images, then the evaluation of many images.

    OMP_NUM_THREADS=1 python tests/stress_memory.py [--steps=2000] [--images=2000] [--workers=2] [--out=FILE.png]

Prints a table with the memory of the process (resident, and what of it is in use; the rest is heap that the allocator
keeps), of the workers that load images, open files and speed. For Linux with glibc.
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

from fixtures import OPTIONS, narrow_vgg16, write_voc  # noqa: E402

import data  # noqa: E402
import model  # noqa: E402
import train  # noqa: E402
import training  # noqa: E402
from utils.checkpoint import load_checkpoint  # noqa: E402
from utils.command import parse_options  # noqa: E402
from utils.config import TrainConfig  # noqa: E402
from utils.logger import Logger  # noqa: E402
from utils.metrics import evaluate  # noqa: E402

COLUMNS = ("step", "MB", "MB in use", "MB of workers", "open files", "images per s")
GLIBC = ctypes.CDLL(None)


class MallInfo(ctypes.Structure):
    """What glibc's mallinfo2() returns."""

    NAMES = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES]


GLIBC.mallinfo2.restype = MallInfo


def resident(pid="self"):
    """Return the resident memory of a process in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def measure(step, speed):
    """Return one row of the table; COLUMNS."""
    workers = 0.0
    for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        with contextlib.suppress(OSError, StopIteration):  # it has just ended
            workers += resident(pid)
    heap = GLIBC.mallinfo2()
    in_use = (heap.uordblks + heap.hblkhd) / 2**20  # in the heap, and blocks with pages of their own
    return step, resident(), in_use, workers, len(os.listdir("/proc/self/fd")), speed


def measure_training(steps, workers):
    """Train; return a row per 50 steps, (N, 6)."""
    rows = []

    class MeasuringLogger(Logger):
        """A logger that takes a row with every record."""

        def train(self, step, epoch, figures):
            """Take a row."""
            super().train(step, epoch, figures)
            rows.append(measure(step, figures["images_per_second"]))

    training.Logger = MeasuringLogger
    options = {"env": "long", "max_steps": str(steps), "epoch": "999", "eval_every": "3", "plot_every": "50"}
    options = OPTIONS | options | {"num_workers": str(workers)}
    train.main(parse_options(TrainConfig, options, defaults=model.defaults))
    return np.array(rows)


def measure_evaluation():
    """Evaluate; return a row per 100 images, (N, 6)."""
    checkpoint = load_checkpoint("runs/long/last.pth")
    config = TrainConfig(**checkpoint["config"])
    (dataset,) = data.build("voc", config, ("many",), checkpoint["class_names"])
    rows, read, since = [], type(dataset).__getitem__, [time.monotonic()]

    def measured_read(self, index):
        if index % 100 == 0:
            now = time.monotonic()
            rows.append(measure(index, 100 / (now - since[0]) if index else np.nan))
            since[0] = now
        return read(self, index)

    type(dataset).__getitem__ = measured_read
    print(f"evaluation: mAP {evaluate(model.restore(checkpoint), dataset, num_workers=0).map:.3f}")
    return np.array(rows)


def show(name, rows):
    """Print eleven rows, and how the means of the last quarter differ from those of the second."""
    print(f"\n{name}\n" + "  ".join(f"{column:>14}" for column in COLUMNS))
    for row in rows[np.linspace(0, len(rows) - 1, 11).astype(int)]:
        print("  ".join(f"{value:14.1f}" for value in row))
    quarter = len(rows) // 4
    change = rows[-quarter:].mean(0) - rows[quarter : 2 * quarter].mean(0)
    columns = zip(COLUMNS[1:], change[1:], strict=True)
    print("last quarter minus second: " + ", ".join(f"{column} {value:+.1f}" for column, value in columns))


def main(steps=2000, images=2000, workers=2, out=None):
    """Train, evaluate, print, draw; see the top of the file."""
    out = out and Path(out).absolute()
    narrow_vgg16()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        write_voc(Path("voc"), {"train": 200, "val": 8, "many": images})
        parts = {f"training, {steps} steps": measure_training(steps, workers)}
        parts[f"evaluation, {images} images"] = measure_evaluation()
        os.chdir(ROOT)
    for name, rows in parts.items():
        show(name, rows)
    if out:
        figure, axes = plt.subplots(2, 5, figsize=(19, 7), layout="constrained")
        for line, (name, rows) in zip(axes, parts.items(), strict=True):
            for axis, column, values in zip(line, COLUMNS[1:], rows.T[1:], strict=True):
                axis.plot(rows[:, 0], values)
                axis.set_ylim(0, max(np.nanmax(values) * 1.15, 1))
                axis.set_title(f"{name}: {column}", fontsize="medium")
        figure.savefig(out)
        print(f"\ndrawn in {out}")


if __name__ == "__main__":
    fire.Fire(main)
