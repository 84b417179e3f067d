"""Measure speed and memory on this machine (paper 4.1, table 5): `python -m tools.benchmark`.

ours: a training step and `predict` of this library, from decoded images on.
padded: the same with the images of a step together (`--batching=padded`), if there are several.
torchvision: `torchvision.models.detection.fasterrcnn_MODEL` if there is one, with the same initial weights, all of them
trained. For vgg16: torchvision's FasterRCNN around the same VGG16, with the same sizes, anchors, numbers of proposals
and samples, head width and optimizer; RoIAlign and torch's default memory format are its own.
lower_bound, of vgg16: the layers alone, on tensors that are ready: VGG16's features, the RPN's convolutions and the
head on 128 (300) RoIs, with backward pass and optimizer step. Nothing with the same layers, precision and format is
faster.

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
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import detection
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

import model
from data import Sample
from model.utils.anchor_target_creator import AnchorTargetCreator
from model.utils.proposal_target_creator import ProposalTargetCreator
from research.padded import PaddedTrainer
from trainer import FasterRCNNTrainer, build_optimizer
from utils.checkpoint import check_writable, write_text
from utils.command import command
from utils.config import MODEL, Config, Count, OptionError, PathText, Precision, option
from utils.distributed import pick_device, pick_dtype
from utils.run_folder import describe_environment

N_CLASS, WIDTH, N_FROZEN, LR = 20, 4096, 4, 1e-3  # classes of VOC; width of fc6 and fc7; conv1_1 to conv2_2
N_ROI = {"train": 128, "predict": 300}
N_WARM_UP = 4  # rounds until the memory that is kept between steps no longer grows


class BenchConfig(Config):
    """python -m tools.benchmark: Measure speed and memory, next to torchvision's detector and the bare layers.

    example: python -m tools.benchmark --size=600x800 --json=runs/benchmark.json
    """

    model: str = option(MODEL, "Model", "NAME of model/NAME.py, or one of the NAMES that such a file lists")
    device: str = option("auto", "Device", "auto (the GPU if there is one), cpu, cuda or cuda:N")
    precision: Precision = option("auto", "Device", "fp32, bf16, or auto: both if the hardware has instructions for it")
    size: str = option("600x800", "Image", "height x width of the image, which is not resized")
    batch_size: Count = option(1, "Image", "images per step and per prediction")
    steps: Count = option(5, "Run", f"rounds to measure, after {N_WARM_UP} to warm up")
    json_path: PathText | None = option(None, "Run", "file to write the figures to", alias="json")


def parse_size(text):
    """Return [height, width] of `--size`; raise OptionError if it is not HEIGHTxWIDTH."""
    size = [int(side) if side.isdecimal() else 0 for side in text.split("x")]
    if len(size) != 2 or min(size) < 32:
        raise OptionError(f"--size must be HEIGHTxWIDTH, such as 600x800, each at least 32, not {text!r}")
    return size


def build_torchvision(name, size):
    """Build the detector that torchvision publishes under `name`, with random weights; None if there is none."""
    build = getattr(detection, f"fasterrcnn_{name}", None)
    torch.manual_seed(0)
    options = {"num_classes": N_CLASS + 1, "min_size": min(size), "max_size": max(size)}
    return build and build(weights=None, weights_backbone=None, **options)


def build_network(size, name=MODEL, **kwargs):
    """Build our network for images of `size`, (height, width), with the weights of `build_torchvision`."""
    options = {"n_fg_class": N_CLASS, "min_size": min(size), "max_size": max(size)}
    if name == MODEL:
        options |= {"head_width": WIDTH, "frozen_convs": N_FROZEN}
    if theirs := build_torchvision(name, size):
        options |= {"pretrained": theirs.state_dict(), "trainable_layers": 6, "batch_norm": "trained"}
    return model.build(name, **options | kwargs)


class Contestant:
    """A network, and images of noise with objects.

    Args:
        device: torch.device.
        dtype: torch.bfloat16 for autocast, None for float32.
        size: (height, width) of the images.
        name: of the backbone.
        batch_size: number of images.
        n_object: number of objects of each.
        kwargs: arguments of `build`.
    """

    def __init__(self, device, dtype, size, name=MODEL, batch_size=1, n_object=5, **kwargs):
        rng, n_class = np.random.default_rng(0), kwargs.get("n_fg_class", N_CLASS)
        self.samples, self.device, self.dtype, self.name = [], device, dtype, name
        for _ in range(batch_size):
            corner = rng.uniform(0, 0.6, (n_object, 2)) * size
            bbox = np.hstack((corner, corner + rng.uniform(0.1, 0.4, (n_object, 2)) * size)).astype(np.float32)
            img, label = rng.integers(0, 256, (*size, 3), np.uint8), rng.integers(0, n_class, n_object)
            self.samples.append(Sample(img, bbox, label, np.zeros(n_object, bool), "noise"))
        self.net = self.build(size, **kwargs).to(device)
        self.optimizer = build_optimizer(self.net, LR)

    def build(self, size, **kwargs):
        """Build the network."""
        return build_network(size, self.name, **kwargs)

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

    trainer = FasterRCNNTrainer

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        own = model.defaults(self.name)
        anchor_targets = AnchorTargetCreator(own["rpn_n_sample"], allowed_border=own["allowed_border"])
        targets = anchor_targets, ProposalTargetCreator(own["n_sample"])
        self.trainer = self.trainer(self.net, self.optimizer, *targets, own["rpn_sigma"], own["roi_sigma"], self.dtype)

    def train(self):
        """Take a training step."""
        self.trainer.train_step([sample._replace(rng=np.random.default_rng(0)) for sample in self.samples])

    def detect(self):
        """Return detections on the host."""
        return self.net.predict([sample.img for sample in self.samples])


class Padded(Ours):
    """This library with the images of a step together."""

    trainer = PaddedTrainer


class Torchvision(Contestant):
    """torchvision's detector."""

    def build(self, size):
        """Build the network."""
        if theirs := build_torchvision(self.name, size):
            return theirs
        extractor = build_network(size, head_width=1).extractor
        backbone = torch.nn.Sequential(*extractor)  # without our choice of a memory format
        backbone.out_channels = extractor.channels
        predictor, head = FastRCNNPredictor(WIDTH, N_CLASS + 1), TwoMLPHead(backbone.out_channels * 7 * 7, WIDTH)
        layers = {"box_roi_pool": MultiScaleRoIAlign(["0"], 7, 2), "box_head": head, "box_predictor": predictor}
        layers |= {"rpn_anchor_generator": AnchorGenerator(((128, 256, 512),), ((0.5, 1.0, 2.0),))}
        numbers = {"rpn_pre_nms_top_n_train": 12000, "rpn_post_nms_top_n_train": 2000, "box_nms_thresh": 0.3}
        numbers |= {"rpn_pre_nms_top_n_test": 6000, "rpn_post_nms_top_n_test": N_ROI["predict"]}
        numbers |= {"box_batch_size_per_image": N_ROI["train"], "min_size": min(size), "max_size": max(size)}
        return FasterRCNN(backbone, **layers, **numbers)

    def images(self):
        """Return the images as a list of (3, H, W) tensors."""
        return [torch.from_numpy(sample.img).to(self.device).permute(2, 0, 1) / 255 for sample in self.samples]

    def loss(self):
        """Compute the sum of the losses."""
        targets = []
        for sample in self.samples:
            boxes, labels = torch.from_numpy(sample.bbox[:, [1, 0, 3, 2]]), torch.from_numpy(sample.label) + 1
            targets.append({"boxes": boxes.to(self.device), "labels": labels.to(self.device)})
        return sum(self.net(self.images(), targets).values())

    def detect(self):
        """Return detections on the host."""
        return [value.cpu() for found in self.net(self.images()) for value in found.values()]


class LowerBound(Contestant):
    """The layers alone, with their input and the pooled features of the RoIs ready."""

    def build(self, size):
        """Build the layers."""
        net = build_network(size, roi_op=lambda feature, pool: pool)
        n_image, n_in = len(self.samples), net.head.fc6.in_features
        self.img = torch.randn(n_image, 3, *size, device=self.device).to(memory_format=torch.channels_last)
        self.pool = {work: torch.rand(n_image * n, n_in, device=self.device) for work, n in N_ROI.items()}
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


CONTESTANTS = {"ours": Ours, "padded": Padded, "torchvision": Torchvision, "lower_bound": LowerBound}


def find_contestants(name=MODEL, batch_size=1):
    """Return those of `CONTESTANTS` that there are for a backbone."""
    there = {"ours": True, "lower_bound": name == MODEL}
    there["padded"] = batch_size > 1 and "batching" in model.defaults(name)
    there["torchvision"] = name == MODEL or hasattr(detection, f"fasterrcnn_{name}")
    return {contestant: make for contestant, make in CONTESTANTS.items() if there[contestant]}


def now(device):
    """Return the time in seconds after the device has done all of its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(steps, device, dtype, size, *entered):
    """Time rounds of a training step and a prediction of every contestant; `entered`: see `find_contestants`.

    Returns:
        Contestant -> "train" or "predict" -> list of seconds.
    """
    contestants = {name: make(device, dtype, size, *entered) for name, make in find_contestants(*entered).items()}
    seconds = {name: {work: [] for work in N_ROI} for name in contestants}
    rng = np.random.default_rng(0)
    for i in range(N_WARM_UP + steps):
        for name in rng.permutation(list(contestants)):
            for work in N_ROI:
                start = now(device)
                getattr(contestants[name], work)()
                seconds[name][work] += [now(device) - start] * (i >= N_WARM_UP)
    return seconds


def count_work(contestant):
    """Return the millions of parameters and the GFLOP of a prediction, two for a multiplication and its addition."""
    with FlopCounterMode(display=False) as counter:
        contestant.predict()
    parameters = sum(param.numel() for param in contestant.net.parameters())
    return {"parameters_m": parameters / 1e6, "gflop": counter.get_total_flops() / 1e9}


def peak_memory(*args):
    """Return the peak GB of three training steps in a process of its own; None if the system does not report it.

    Args: name of the contestant, then what it takes.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, args)


def _peak_memory(name, device, *args):
    contestant = CONTESTANTS[name](pick_device(str(device)), *args)  # the current one of this process
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
                ratio = f"{np.median(np.divide(values, seconds[other][work])):.2f}" if other in seconds else ""
                line += f"  {ratio:>14}"
            print((line + (f"  {peak:7.2f}" if peak else "")).rstrip())
    return {"seconds": seconds, "median": median, "peak_gb": memory}


def main(config):
    """Measure as a `BenchConfig` says; print tables."""
    device, size, entered = pick_device(config.device), parse_size(config.size), (config.model, config.batch_size)
    check_writable(config.json_path)
    usual = ["fp32", "bf16"] if pick_dtype("auto", device) else ["fp32"]
    precisions = usual if config.precision == "auto" else [config.precision]
    results = {key: getattr(config, key) for key in ("model", "batch_size", "size", "steps")}
    results |= describe_environment(device)
    print(", ".join(f"{key} {value}" for key, value in results.items() if value is not None))
    results["work"] = {}
    for name in [name for name in find_contestants(*entered) if name in ("ours", "torchvision")]:
        results["work"][name] = work = count_work(CONTESTANTS[name](device, None, size, config.model))
        print(f"{name}: {work['parameters_m']:.1f} million parameters, {work['gflop']:.1f} GFLOP to predict an image")
    for precision in precisions:
        args = device, pick_dtype(precision, device), size, *entered
        memory = {name: peak_memory(name, *args) for name in find_contestants(*entered)}
        results[precision] = report(precision, measure(config.steps, *args), memory)
    if config.json_path:
        write_text(config.json_path, json.dumps(results, indent=1))


if __name__ == "__main__":
    fire.Fire(command(BenchConfig, main, defaults=model.defaults))
