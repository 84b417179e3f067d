"""Measure speed and memory on this machine (paper 4.1, table 5): `python -m tools.benchmark`.

ours: a training step and `predict` of this library, from a decoded image on.
torchvision: torchvision.models.detection.FasterRCNN around the same VGG16, with the same sizes, anchors, numbers of
proposals and samples, head width and optimizer; RoIAlign and torch's default memory format are its own.
lower_bound: the layers alone, on tensors that are ready: VGG16's features, the RPN's convolutions and the head on 128
(300) RoIs, with backward pass and optimizer step. Nothing with the same layers, precision and format is faster.

All run in turn in one process, in random order, so that other load on the machine affects all of them. Seconds are
medians over the rounds, and so are ratios, which are taken within a round. Memory is measured in separate processes.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads: docs/benchmarks.md#a-busy-machine

import json
import multiprocessing
import statistics
import time
from pathlib import Path

import fire
import numpy as np
import torch
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

import model
from data import Sample
from trainer import FasterRCNNTrainer, build_optimizer
from utils.checkpoint import check_writable, describe_environment, write_text
from utils.config import Config, Count, OptionError, PathText, Precision, command, option
from utils.distributed import pick_device, pick_dtype

N_CLASS, WIDTH, N_FROZEN, LR = 20, 4096, 4, 1e-3  # classes of VOC; width of fc6 and fc7; conv1_1 to conv2_2
N_ROI = {"train": 128, "predict": 300}
N_WARM_UP = 4  # rounds until the memory that is kept between steps no longer grows


class BenchConfig(Config):
    """python -m tools.benchmark: Measure speed and memory, next to torchvision's detector and the bare layers.

    example: python -m tools.benchmark --size=600x800 --json=runs/benchmark.json
    """

    device: str = option("auto", "Device", "auto (the GPU if there is one), cpu, cuda or cuda:N")
    precision: Precision = option("auto", "Device", "fp32, bf16, or auto: both if the hardware has instructions for it")
    size: str = option("600x800", "Image", "height x width of the image, which is not resized")
    steps: Count = option(5, "Run", f"rounds to measure, after {N_WARM_UP} to warm up")
    json_path: PathText | None = option(None, "Run", "file to write the figures to", alias="json")


def parse_size(text):
    """Return [height, width] of `--size`; raise OptionError if it is not HEIGHTxWIDTH."""
    size = [int(side) if side.isdecimal() else 0 for side in text.split("x")]
    if len(size) != 2 or min(size) < 32:
        raise OptionError(f"--size must be HEIGHTxWIDTH, such as 600x800, each at least 32, not {text!r}")
    return size


def build_network(size, **kwargs):
    """Build our network for images of `size`, (height, width)."""
    options = {"n_fg_class": N_CLASS, "head_width": WIDTH, "frozen_convs": N_FROZEN} | kwargs
    return model.build("vgg16", min_size=min(size), max_size=max(size), **options)


class Contestant:
    """A network, and an image of noise with objects.

    Args:
        device: torch.device.
        dtype: torch.bfloat16 for autocast, None for float32.
        size: (height, width) of the image.
        n_object: number of objects.
        kwargs: arguments of `build`.
    """

    def __init__(self, device, dtype, size, n_object=5, **kwargs):
        rng, n_class = np.random.default_rng(0), kwargs.get("n_fg_class", N_CLASS)
        corner = rng.uniform(0, 0.6, (n_object, 2)) * size
        bbox = np.hstack((corner, corner + rng.uniform(0.1, 0.4, (n_object, 2)) * size)).astype(np.float32)
        img, label = rng.integers(0, 256, (*size, 3), np.uint8), rng.integers(0, n_class, n_object)
        self.sample, self.device, self.dtype = (
            Sample(img, bbox, label, np.zeros(n_object, bool), "noise"),
            device,
            dtype,
        )
        self.net = self.build(size, **kwargs).to(device)
        self.optimizer = build_optimizer(self.net, LR)

    def build(self, size, **kwargs):
        """Build the network."""
        return build_network(size, **kwargs)

    def autocast(self):
        """Return the context in which the layers run."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def train(self):
        """Take a training step."""
        self.net.train()
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.loss()
        loss.backward()
        self.optimizer.step()

    def predict(self):
        """Detect objects."""
        self.net.eval()
        with torch.no_grad(), self.autocast():
            self.detect()


class Ours(Contestant):
    """This library."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.trainer = FasterRCNNTrainer(self.net, self.optimizer, dtype=self.dtype)

    def train(self):
        """Take a training step."""
        self.trainer.train_step([self.sample._replace(rng=np.random.default_rng(0))])

    def detect(self):
        """Return detections on the host."""
        return self.net.predict([self.sample.img])


class Torchvision(Contestant):
    """torchvision's detector."""

    def build(self, size):
        """Build the network."""
        backbone = build_network(size, head_width=1).extractor
        backbone.out_channels = backbone.channels
        layers = {
            "box_roi_pool": MultiScaleRoIAlign(["0"], 7, 2),
            "box_predictor": FastRCNNPredictor(WIDTH, N_CLASS + 1),
        }
        layers |= {"box_head": TwoMLPHead(backbone.channels * 7 * 7, WIDTH)}
        layers |= {"rpn_anchor_generator": AnchorGenerator(((128, 256, 512),), ((0.5, 1.0, 2.0),))}
        numbers = {"rpn_pre_nms_top_n_train": 12000, "rpn_post_nms_top_n_train": 2000, "box_nms_thresh": 0.3}
        numbers |= {"rpn_pre_nms_top_n_test": 6000, "rpn_post_nms_top_n_test": N_ROI["predict"]}
        numbers |= {"box_batch_size_per_image": N_ROI["train"], "min_size": min(size), "max_size": max(size)}
        return FasterRCNN(backbone, **layers, **numbers).to(memory_format=torch.contiguous_format)

    def images(self):
        """Return the image as a list of (3, H, W) tensors."""
        return [torch.from_numpy(self.sample.img).to(self.device).permute(2, 0, 1) / 255]

    def loss(self):
        """Compute the sum of the losses."""
        boxes, labels = torch.from_numpy(self.sample.bbox[:, [1, 0, 3, 2]]), torch.from_numpy(self.sample.label) + 1
        target = {"boxes": boxes.to(self.device), "labels": labels.to(self.device)}
        return sum(self.net(self.images(), [target]).values())

    def detect(self):
        """Return detections on the host."""
        return [value.cpu() for value in self.net(self.images())[0].values()]


class LowerBound(Contestant):
    """The layers alone, with their input and the pooled features of the RoIs ready."""

    def build(self, size):
        """Build the layers."""
        net = build_network(size, roi_op=lambda feature, pool: pool)
        self.img = torch.randn(1, 3, *size, device=self.device).to(memory_format=torch.channels_last)
        self.pool = {work: torch.rand(n, net.head.fc6.in_features, device=self.device) for work, n in N_ROI.items()}
        return net

    def forward(self, pool):
        """Run the layers on (R, C * 7 * 7) pooled features."""
        feature = self.net.extractor(self.img)
        return [*self.net.rpn.head(feature), *self.net.head(feature, pool)]

    def loss(self):
        """Compute a scalar that depends on all outputs; RoI pooling would need the gradient of `pool`."""
        return sum(output.square().mean() for output in self.forward(self.pool["train"].requires_grad_()))

    def detect(self):
        """Run the layers."""
        return self.forward(self.pool["predict"])


CONTESTANTS = {"ours": Ours, "torchvision": Torchvision, "lower_bound": LowerBound}


def now(device):
    """Return the time in seconds after the device has done all of its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(steps, device, *args):
    """Time rounds of a training step and a prediction of every contestant.

    Returns:
        Contestant -> "train" or "predict" -> list of seconds.
    """
    contestants = {name: make(device, *args) for name, make in CONTESTANTS.items()}
    seconds = {name: {work: [] for work in N_ROI} for name in contestants}
    rng = np.random.default_rng(0)
    for i in range(N_WARM_UP + steps):
        for name in rng.permutation(list(contestants)):
            for work in N_ROI:
                start = now(device)
                getattr(contestants[name], work)()
                seconds[name][work] += [now(device) - start] * (i >= N_WARM_UP)
    return seconds


def peak_memory(*args):
    """Return the peak GB of three training steps in a process of its own; None if the system does not report it.

    Args: name of the contestant, then what it takes.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, args)


def _peak_memory(name, device, *args):
    contestant = CONTESTANTS[name](device, *args)
    for _ in range(3):
        contestant.train()
    return peak_gb(device)


def peak_gb(device):
    """Return the most memory in GB that this process has had, on a GPU of torch's; None if the system says nothing."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    status = Path("/proc/self/status")  # getrusage would report the peak of the parent if that is higher
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmHWM")), None)


def report(precision, seconds, memory):
    """Print the tables of one precision; return its figures."""
    median = {name: {work: statistics.median(by_work[work]) for work in N_ROI} for name, by_work in seconds.items()}
    for work in N_ROI:
        print(f"\n{work + ', ' + precision:16}seconds  (range)             of torchvision  of lower_bound  peak GB")
        for name, by_work in seconds.items():
            values, peak = by_work[work], memory[name] if work == "train" else None
            line = f"{name:16}{median[name][work]:7.4f}  ({min(values):.4f} to {max(values):.4f})"
            for other in ("torchvision", "lower_bound"):
                pairs = zip(values, seconds[other][work], strict=True)
                line += f"  {statistics.median(value / base for value, base in pairs):14.2f}"
            print(line + (f"  {peak:7.2f}" if peak else ""))
    return {"seconds": seconds, "median": median, "peak_gb": memory}


def main(config):
    """Measure as a `BenchConfig` says; print tables."""
    device, size = pick_device(config.device), parse_size(config.size)
    check_writable(config.json_path)
    precisions = [config.precision]
    if config.precision == "auto":
        precisions = ["fp32", "bf16"] if pick_dtype("auto", device) else ["fp32"]
    results = {"size": config.size, "steps": config.steps} | describe_environment(device)
    print(", ".join(f"{key} {value}" for key, value in results.items() if value is not None))
    for precision in precisions:
        args = device, pick_dtype(precision, device), size
        memory = {name: peak_memory(name, *args) for name in CONTESTANTS}
        results[precision] = report(precision, measure(config.steps, *args), memory)
    if config.json_path:
        write_text(config.json_path, json.dumps(results, indent=1))


if __name__ == "__main__":
    fire.Fire(command(BenchConfig, main))
