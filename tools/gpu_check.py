"""Check and measure what only a GPU can show: `python -m tools.gpu_check`, at most 9 minutes.

Each check has a process of its own and limited time, so that one that fails, crashes or hangs hides no other. With
`--device=cpu --size=64x96` the same code runs on a CPU, where it shows little.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads: docs/benchmarks.md#a-busy-machine

import contextlib
import json
import multiprocessing
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path

import fire
import numpy as np
import torch

from tools import benchmark
from utils.checkpoint import check_writable, write_text
from utils.command import command
from utils.config import Config, Names, OptionError, PathText, option
from utils.distributed import pick_device, pick_dtype
from utils.logger import LOSSES
from utils.run_folder import describe_environment

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests"
TOY = (ROOT / "docs/demo_options.txt").read_text(encoding="utf-8").split()  # options of train.py for random weights
N_ROUND, N_PROFILED = 20, 10  # rounds to measure; steps to profile
N_LEARN, N_REPEAT = 300, 20  # steps on the toy data
LOSS_CHANGE = 0.01  # largest change of a loss by the precision of the layers, relative to the total
N_WAIT = 2  # for the proposals: those that NMS keeps, then those of CuPy's mask, whose numbers the host must know
FALL = 0.9  # largest mean loss of the last third of the steps, relative to the first
# largest distance of equal runs: on a GPU, RoI pooling's gradient adds in no fixed order. On a CPU, noise of 6e-8 in
# the weights of each of 10 steps made a distance of 3e-5; a resumed run without its momentum has one of 8e-4
NOISE = {"cpu": 0, "cuda": 5e-4}
START = "spawn"  # how a process starts: a fork could not use CUDA
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")  # the profiler itself synchronizes the device


class GpuConfig(Config):
    """python -m tools.gpu_check: Check and measure what only a GPU can show; write a table and its figures.

    example: python -m tools.gpu_check --out=runs/gpu_check
    """

    device: str = option("cuda", "Device", "auto (the GPU if there is one), cpu, cuda or cuda:N")
    size: str = option("600x800", "Image", "height x width of the image that is timed, which is not resized")
    checks: Names = option((), "Run", "checks a,b to run; empty: all")
    patience: float = option(1.0, "Run", "factor of the seconds that a check may take", ge=0)
    out: PathText = option("runs/gpu_check", "Run", "name of the files to write, to which .json and .md are appended")


def run_tests(config, device, folder):
    """Run the tests that are marked cuda: CuPy's creators against NumPy's, among others."""
    files = [path for path in sorted(TESTS.rglob("test_*.py")) if "mark.cuda" in path.read_text(encoding="utf-8")]
    words = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", *files]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    counts = {kind: int(n) for n, kind in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", done.stdout)}
    wrong = done.returncode or (device.type == "cuda" and "skipped" in counts)
    return counts | {"fault": f"{done.stdout}{done.stderr}"[-2000:] if wrong else None}


def set_precision(name):
    """Set the arithmetic of float32 layers on a GPU; return the dtype of autocast, None for float32."""
    float32 = "tf32" if name == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = float32
    return torch.bfloat16 if name == "bf16" else None


def find_precisions(device):
    """Return the precisions for which the device has instructions: cuDNN convolves bf16 nowhere else."""
    return ["fp32", "tf32", "bf16"] if pick_dtype("auto", device) else ["fp32", "tf32"]


def compare_precisions(config, device, folder):
    """Compare the losses of a first step, random weights, in every precision with float32's."""
    ours = benchmark.Ours(device, set_precision("fp32"), benchmark.parse_size(config.size))
    (sample,), losses, figures = ours.samples, {}, {}
    x, scale = ours.net.train().prepare(sample.img)
    with torch.no_grad():
        roi = ours.net.rpn(ours.net.extractor(x), x.shape[2:], scale, train=True).roi.cpu().numpy()
        for name in find_precisions(device):
            ours.trainer.dtype = set_precision(name)
            for kept in (roi, None):
                drawn = sample._replace(rng=np.random.default_rng(0), roi=kept)
                losses[name, kept is roi] = torch.stack(ours.trainer.compute_losses(drawn)[:5]).double().cpu()
    for (name, same), values in losses.items():
        change = (values - losses["fp32", same]) / losses["fp32", same][-1]
        for loss, value, relative in zip(LOSSES, values.tolist(), change.tolist(), strict=True):
            key = f"{loss}, {name}, {'the same' if same else 'its own'} proposals"
            figures[key] = value if name == "fp32" else f"{relative:+.3%} of the total"
        if same and not (change.abs() <= LOSS_CHANGE).all():  # NaN is a fault, too
            figures["fault"] = f"{name} changes a loss by more than {LOSS_CHANGE:.0%} of the total"
    return figures


def measure(config, device, folder):
    """Time a training step and a prediction, beside torchvision's detector and the bare layers; measure memory."""
    figures, size, precisions = {}, benchmark.parse_size(config.size), find_precisions(device)
    for precision in precisions:  # tf32 needs as much as fp32; first, while this process has no memory of a GPU
        for name in benchmark.find_contestants() if precision != "tf32" else ():
            peak = benchmark.peak_memory(name, device, set_precision(precision), size)
            figures[f"train, {precision}, {name}, peak GB"] = peak
    for precision in precisions:
        dtype = set_precision(precision)
        seconds = benchmark.measure(N_ROUND, device, dtype, size)
        for name, by_work in seconds.items():
            for work, values in by_work.items():
                figures[f"{work}, {precision}, {name}, seconds"] = statistics.median(values)
                ratios = np.divide(values, seconds["ours"][work])
                figures[f"{work}, {precision}, {name} / ours"] = float(np.median(ratios))
    return figures


def count_waits(config, device, folder):
    """Count how often the host waits for a GPU in a training step and in a prediction."""
    ours, figures = benchmark.Ours(device, pick_dtype("auto", device), benchmark.parse_size(config.size)), {}
    for work in benchmark.N_ROI:
        call = getattr(ours, work)
        for _ in range(benchmark.N_WARM_UP):
            call()
        with torch.profiler.profile() as profiler:
            for _ in range(N_PROFILED):
                call()
        n_wait = sum(event.count for event in profiler.key_averages() if event.key in WAITS)
        figures[f"{work}, waits"] = n_wait / N_PROFILED
    waits = figures["train, waits"]
    wrong = waits > N_WAIT or (device.type == "cuda" and not waits)  # none: the profiler sees no GPU
    return figures | {"fault": f"{waits:g} waits per training step, not {N_WAIT}" if wrong else None}


def train(folder, env, device, *options):
    """Train on the toy data with train.py, in `folder`; return the records of its log."""
    words = [sys.executable, ROOT / "train.py", "train", "--data=shapes", "--visdom=off", *TOY, "--plot-every=10"]
    words += [f"--env={env}", f"--device={device}", *options]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"train.py: {done.stderr[-2000:]}")
    log = Path(folder, "runs", env, "log.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in log.splitlines()]


def learn(config, device, folder):
    """Train on the toy data: the loss must fall."""
    records = train(folder, "learn", device, f"--max-steps={N_LEARN}")
    steps = [record for record in records if record["kind"] == "train"]
    loss, n = [record["total"] for record in steps], max(1, len(steps) // 3)
    first, last = statistics.mean(loss[:n]), statistics.mean(loss[-n:])
    figures = {"loss, first third": first, "loss, last third": last, "mAP": records[-1].get("map")}
    figures["images per second, median"] = statistics.median(record["images_per_second"] for record in steps)
    return figures | {"fault": None if last <= FALL * first else "the loss does not fall"}


def repeat(config, device, folder):
    """Train twice with --deterministic, and once with an interruption: the weights must be equal to `NOISE`."""
    options = "--deterministic", f"--max-steps={N_REPEAT}"
    for env in ("one", "two"):
        train(folder, env, device, *options)
    train(folder, "resumed", device, *options, f"--max-steps={N_REPEAT // 2}")
    train(folder, "resumed", device, "--resume", f"--max-steps={N_REPEAT}")
    paths = [Path(folder, "runs", env, "last.pth") for env in ("one", "two", "resumed")]
    one, two, resumed = (torch.load(path, weights_only=True)["model"] for path in paths)
    noise, change = distance(one, two), distance(one, resumed)
    faults = ["two equal runs differ"] * (not noise <= NOISE[device.type])
    faults += ["a whole and a resumed run differ"] * (not change <= NOISE[device.type])
    figures = {"distance of the weights of two equal runs": noise, "of a whole and a resumed run": change}
    return figures | {"fault": "; ".join(faults) or None}


def distance(one, other):
    """Return the Euclidean distance of the weights of two networks, relative to their length."""
    flat, other_flat = (torch.cat([weights[name].double().flatten() for name in one]) for weights in (one, other))
    return ((flat - other_flat).norm() / flat.norm()).item()


CHECKS = {  # check -> function of (config, device, scratch folder), which returns figures; seconds that it may take
    "tests": (run_tests, 80),
    "precision": (compare_precisions, 35),
    "speed": (measure, 190),
    "waits": (count_waits, 35),
    "learning": (learn, 65),
    "repeat": (repeat, 120),
}


def start_process(device):
    """Make this process the first of a group, and `device` its current one, which CuPy uses."""
    os.setsid()
    pick_device(str(device))


def run_apart(check, seconds, config, device, folder):
    """Run a check in a process of its own, for some seconds at most.

    Returns:
        The figures of the check, with "seconds", and "fault": None, or what went wrong.
    """
    start, context = time.monotonic(), multiprocessing.get_context(START)
    with ProcessPoolExecutor(1, context, initializer=start_process, initargs=(device,)) as executor:
        try:
            figures = executor.submit(check, config, device, folder).result(seconds)
        except TimeoutError:
            figures = {"fault": f"not done after {seconds:g} seconds"}
        except Exception as error:
            figures = {"fault": f"{type(error).__name__}: {error}"}
        finally:
            for process in multiprocessing.active_children():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # what the check started ends with it
    return {"fault": None} | figures | {"seconds": time.monotonic() - start}


def format_table(results):
    """Format the results as Markdown: the environment, then a row per figure."""
    head = ", ".join(f"{name} {value}" for name, value in results.items() if name != "checks" and value is not None)
    lines = [head, "", "| check | figure | value |", "|---|---|---|"]
    for name, figures in results["checks"].items():
        fault = " ".join((figures["fault"] or "ok").replace("|", "/").split())
        lines.append(f"| **{name}** | {fault[-300:]} | {figures['seconds']:.0f} s |")
        for key, value in figures.items():
            if key not in ("fault", "seconds"):
                lines.append(f"| {name} | {key} | {f'{value:.4g}' if isinstance(value, float) else value} |")
    return "\n".join(lines) + "\n"


def main(config):
    """Run the checks that a `GpuConfig` names; exit with 1 if one fails."""
    device = pick_device(config.device)
    benchmark.parse_size(config.size)
    for name in config.checks:
        if name not in CHECKS:
            raise OptionError(f"--checks={name}: choose from {','.join(CHECKS)}")
    paths = [f"{config.out}.{suffix}" for suffix in ("json", "md")]
    check_writable(*paths)
    cupy = [found.version for found in metadata.distributions() if found.name.startswith("cupy")]
    versions = {"cuda": torch.version.cuda, "cupy": ", ".join(cupy) or None}
    results = {"size": config.size} | describe_environment(device) | versions | {"checks": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in config.checks or CHECKS:
            print(f"{name} ...")
            check, seconds = CHECKS[name]
            results["checks"][name] = run_apart(check, seconds * config.patience, config, device, folder)
            for path, text in zip(paths, (json.dumps(results, indent=1), format_table(results)), strict=True):
                write_text(path, text)
    print(format_table(results) + f"written to {' and '.join(paths)}")
    if any(figures["fault"] for figures in results["checks"].values()):
        sys.exit(1)


if __name__ == "__main__":
    fire.Fire(command(GpuConfig, main))
