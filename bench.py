"""How fast this is, beside a peer and a floor, on your own machine: `python bench.py`.

ours: a training step and `predict` of this library, from the bytes of an image on.
peer: torchvision.models.detection.FasterRCNN around the same VGG16, with the same sizes, anchors, numbers of proposals
and samples, 4096-wide head and optimizer. Its RoIAlign is what it is, and so is its memory format, torch's default.
floor: only the layers on tensors that lie ready: VGG16's features, the RPN's convolutions and the head on 128 (300)
RoIs, forward and backward, and one optimizer step. Nobody can be faster with these layers, precision and format.

All are run in turn in one process, so that whatever else the machine does meets all of them; seconds are medians over
the rounds, and so are ratios, which are taken within a round. Memory is measured in a process for each.
"""

import collections
import json
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import fire
import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.models import vgg16
from torchvision.models.detection import FasterRCNN as Peer
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

import model
from data.transforms import TrainTransform
from data.voc import Sample, read_image
from model.utils import array
from model.utils.preprocess import TORCHVISION, prepare
from trainer import FasterRCNNTrainer
from utils.config import BenchConfig, OptionError, command
from utils.device import pick_device, pick_dtype
from utils.environment import describe_environment
from utils.outputs import check_outputs, write_output
from utils.voc_eval import eval_detection_voc

N_CLASS, WIDTH = 20, 4096  # of VOC; of fc6 and fc7
N_FROZEN = 4  # conv1_1 to conv2_2 (Fast R-CNN 4.5)
N_WARM_UP = 4  # rounds until the memory that is kept between steps no longer grows
N_ROI = {"train": 128, "predict": 300}


def make_sample(height, width):
    """An image of noise with five objects, always the same."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 0.6, (5, 2)) * (height, width)
    bbox = np.concatenate((corner, corner + rng.uniform(0.1, 0.4, (5, 2)) * (height, width)), 1).astype(np.float32)
    img = rng.integers(0, 256, (height, width, 3), np.uint8)
    return Sample(img, bbox, rng.integers(0, N_CLASS, 5), np.zeros(5, bool), "noise")


def sgd(net):
    """The optimizer of `FasterRCNNTrainer`: two groups, fused."""
    named = [(name, param) for name, param in net.named_parameters() if param.requires_grad]
    groups = [
        {
            "params": [param for name, param in named if name.endswith("bias") == bias],
            "weight_decay": 0.0 if bias else 5e-4,
        }
        for bias in (False, True)
    ]
    return torch.optim.SGD(groups, lr=1e-3, momentum=0.9, fused=True)


class Ours:
    """This library, as train.py and eval.py use it."""

    def __init__(self, device, dtype, height, width):
        self.sample, self.dtype, self.device = make_sample(height, width), dtype, device
        size = min(height, width), max(height, width)
        self.net = model.build(
            n_fg_class=N_CLASS, head_width=WIDTH, frozen_convs=N_FROZEN, min_size=size[0], max_size=size[1]
        ).to(device)
        self.trainer = FasterRCNNTrainer(self.net, dtype=dtype)
        self.transform = TrainTransform(self.net.prepare, 0.5)

    def train(self):
        """One training step, from bytes to new weights."""
        self.trainer.train_step([self.transform(self.sample, np.random.default_rng(0))])

    def predict(self):
        """The detections of one image, on the host."""
        with autocast(self.device, self.dtype):
            self.net.predict([self.sample.img])


class TorchvisionPeer:
    """torchvision's own detector, with our numbers."""

    def __init__(self, device, dtype, height, width):
        sample = make_sample(height, width)
        self.dtype, self.device = dtype, device
        self.img = torch.from_numpy(sample.img).permute(2, 0, 1)  # (3, H, W) uint8, as it comes from a file
        bbox = torch.from_numpy(sample.bbox[:, [1, 0, 3, 2]])
        self.target = {"boxes": bbox.to(device), "labels": torch.from_numpy(sample.label).to(device) + 1}
        backbone = vgg16().features[:-1]
        backbone.out_channels = 512
        freeze(backbone)
        self.net = Peer(
            backbone,
            rpn_anchor_generator=AnchorGenerator(((128, 256, 512),), ((0.5, 1.0, 2.0),)),
            min_size=min(height, width),
            max_size=max(height, width),
            rpn_pre_nms_top_n_train=12000,
            rpn_post_nms_top_n_train=2000,
            rpn_pre_nms_top_n_test=6000,
            rpn_post_nms_top_n_test=N_ROI["predict"],
            box_roi_pool=MultiScaleRoIAlign(["0"], 7, 2),
            box_head=TwoMLPHead(512 * 7 * 7, WIDTH),
            box_predictor=FastRCNNPredictor(WIDTH, N_CLASS + 1),
            box_score_thresh=0.05,
            box_nms_thresh=0.3,
            box_batch_size_per_image=N_ROI["train"],
            rpn_batch_size_per_image=256,
        ).to(device)
        self.optimizer = sgd(self.net)

    def train(self):
        """One training step."""
        self.net.train()
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device, self.dtype):
            losses = self.net([self.img.to(self.device) / 255], [self.target])
        sum(losses.values()).backward()
        self.optimizer.step()

    def predict(self):
        """The detections of one image, on the host."""
        self.net.eval()
        with torch.no_grad(), autocast(self.device, self.dtype):
            (found,) = self.net([self.img.to(self.device) / 255])
        return {name: value.cpu() for name, value in found.items()}


class Floor:
    """The layers alone, with their input and the RoIs' pooled features ready."""

    def __init__(self, device, dtype, height, width, memory_format=torch.channels_last):
        self.dtype, self.device = dtype, device
        self.features = freeze(vgg16().features[:-1])
        self.rpn = nn.ModuleList([nn.Conv2d(512, 512, 3, padding=1), nn.Conv2d(512, 18, 1), nn.Conv2d(512, 36, 1)])
        self.head = nn.ModuleList(
            [
                nn.Linear(25088, WIDTH),
                nn.Linear(WIDTH, WIDTH),
                nn.Linear(WIDTH, 4 * N_CLASS + 4),
                nn.Linear(WIDTH, N_CLASS + 1),
            ]
        )
        self.net = nn.ModuleList([self.features, self.rpn, self.head]).to(device, memory_format=memory_format)
        self.img = torch.randn(1, 3, height, width, device=device).to(memory_format=memory_format)
        self.pool = {name: torch.rand(n, 25088, device=device) for name, n in N_ROI.items()}
        self.optimizer = sgd(self.net)

    def layers(self, pool):
        """The outputs of RPN and head."""
        hidden = self.rpn[0](self.features(self.img)).relu()
        fc7 = self.head[1](self.head[0](pool).relu()).relu()
        return [layer(hidden) for layer in self.rpn[1:]] + [layer(fc7) for layer in self.head[2:]]

    def train(self):
        """Forward, backward, optimizer."""
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device, self.dtype):
            outputs = self.layers(self.pool["train"].requires_grad_())  # its gradient goes on to the features
        sum(output.float().square().mean() for output in outputs).backward()
        self.optimizer.step()

    def predict(self):
        """Forward."""
        with torch.no_grad(), autocast(self.device, self.dtype):
            self.layers(self.pool["predict"])


class FloorChannelsFirst(Floor):
    """The same in torch's default memory format."""

    def __init__(self, *args):
        super().__init__(*args, memory_format=torch.contiguous_format)


class OursOnNumPy(Ours):
    """This library with creators on the CPU, as where CuPy cannot be used on a GPU."""

    def train(self):
        """One training step, from bytes to new weights."""
        with mock.patch.object(array, "_usable_cupy", return_value=None):
            super().train()

    def predict(self):
        """The detections of one image, on the host."""
        with mock.patch.object(array, "_usable_cupy", return_value=None):
            super().predict()


CONTESTANTS = {"ours": Ours, "peer": TorchvisionPeer, "floor": Floor, "floor, channels first": FloorChannelsFirst}
GPU_CONTESTANTS = CONTESTANTS | {"ours, creators on NumPy": OursOnNumPy}
CREATORS_AND_LOSSES = ("proposals", "anchor targets", "RoI targets", "losses")


def contestants_for(device):
    """Name -> class of those that are compared on `device`."""
    return GPU_CONTESTANTS if device.type == "cuda" else CONTESTANTS


def freeze(features):
    """VGG16's features without gradient for the first four convolutions."""
    convs = [layer for layer in features if isinstance(layer, nn.Conv2d)]
    for conv in convs[:N_FROZEN]:
        conv.requires_grad_(False)
    return features


def autocast(device, dtype):
    """Autocast to `dtype`, or none."""
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def timed(call, device):
    """Seconds that `call` takes until the device has done all of it."""
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure(device, dtype, height, width, steps):
    """Seconds of training and of predicting: contestant -> work -> list, one a round, after `N_WARM_UP` others."""
    contestants = {name: make(device, dtype, height, width) for name, make in contestants_for(device).items()}
    seconds = {name: {work: [] for work in N_ROI} for name in contestants}
    rng = np.random.default_rng(0)
    for _ in range(N_WARM_UP + steps):
        for name in rng.permutation(list(contestants)):  # nobody always comes after the same one
            for work in N_ROI:
                seconds[name][work].append(timed(getattr(contestants[name], work), device))
    for by_work in seconds.values():
        for values in by_work.values():
            del values[:N_WARM_UP]
    return seconds, where_time_goes(contestants["ours"], steps)


class Clock:
    """Seconds by part: each call of a wrapped function adds what it took, less what wrapped ones inside it took."""

    def __init__(self, device):
        self.device, self.spent, self._inside = device, collections.Counter(), [0.0]

    def wrap(self, part, function):
        """`function`, clocked as `part`."""

        def call(*args, **kwargs):
            result = []
            self._inside.append(0.0)
            seconds = timed(lambda: result.append(function(*args, **kwargs)), self.device)
            self.spent[part] += seconds - self._inside.pop()
            self._inside[-1] += seconds
            return result[0]

        return call


def where_time_goes(ours, steps):
    """Mean seconds of each part of our training step, which wait for one another here. Leaves `ours` clocked."""
    clock = Clock(ours.device)
    net, trainer = ours.net, ours.trainer
    for part, owner, name in (
        ("image", ours, "transform"),
        ("extractor", net.extractor, "forward"),
        ("RPN", net.rpn, "forward"),
        ("proposals", net.rpn, "proposal_creator"),
        ("anchor targets", trainer, "anchor_target_creator"),
        ("RoI targets", trainer, "proposal_target_creator"),
        ("RoI pooling, head", net.head, "forward"),
        ("losses", trainer, "step"),
        ("optimizer", trainer.optimizer, "step"),
        ("backward", trainer, "train_step"),
    ):
        setattr(owner, name, clock.wrap(part, getattr(owner, name)))
    for _ in range(steps):
        ours.train()
    return {part: seconds / steps for part, seconds in clock.spent.items()}


def peak_memory(name, device, dtype, height, width):
    """Peak GB of three training steps of a contestant, in a process of its own; None where the system does not tell."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_memory, (name, device, dtype, height, width))


def _peak_memory(name, device, dtype, height, width):
    pick_device(str(device))
    contestant = GPU_CONTESTANTS[name](device, dtype, height, width)
    for _ in range(3):
        contestant.train()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    status = Path("/proc/self/status")  # getrusage would tell the peak of the parent, where that is larger
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmHWM")), None)


def data_path(n_image=50):
    """Images a second from JPEG files of 500 x 375 to the network's input, by one thread, as one worker has it."""
    rng = np.random.default_rng(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder, f"{i}.jpg") for i in range(n_image)]
            for path in paths:
                coarse = Image.fromarray(rng.integers(0, 256, (25, 34, 3), np.uint8))
                coarse.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
            start = time.perf_counter()
            for path in paths:
                prepare(read_image(path), TORCHVISION, 600, 1000, torch.device("cpu"))
            return n_image / (time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)


def metric(n_image=5000, n_detection=100, n_object=3):
    """Seconds of `eval_detection_voc` on random boxes of 20 classes."""
    rng = np.random.default_rng(0)

    def boxes(n):
        corner = rng.uniform(0, 400, (n_image, n, 2))
        return np.concatenate((corner, corner + rng.uniform(20, 200, (n_image, n, 2))), 2)

    def labels(n):
        return rng.integers(0, N_CLASS, (n_image, n))

    detected = boxes(n_detection), labels(n_detection), rng.random((n_image, n_detection))
    objects = boxes(n_object), labels(n_object)
    return timed(lambda: eval_detection_voc(*detected, *objects, use_07_metric=True), torch.device("cpu"))


def ratio(values, others):
    """The median of what `values` are of `others`, round by round: a slow minute of the machine weighs on both."""
    return statistics.median(value / other for value, other in zip(values, others, strict=True))


def report(precision, seconds, memory, parts):
    """Prints one precision's tables; returns its figures."""
    median = {
        name: {work: statistics.median(values) for work, values in by_work.items()} for name, by_work in seconds.items()
    }
    floors = [name for name in median if name.startswith("floor")]
    for work in N_ROI:
        floor = min(floors, key=lambda name: median[name][work])
        print(
            f"\n{f'{work}, {precision}':24}  seconds    (range)         images/s  of peer  of floor"
            + "  peak GB" * (work == "train")
        )
        for name, by_work in median.items():
            second, values = by_work[work], seconds[name][work]
            peak = memory.get(name) if work == "train" else None
            of_peer, of_floor = (ratio(values, seconds[other][work]) for other in ("peer", floor))
            print(
                f"{name:24}  {second:7.4f}  ({min(values):.4f} to {max(values):.4f})  {1 / second:8.2f}"
                f"  {of_peer:7.2f}  {of_floor:8.2f}" + (f"  {peak:7.2f}" if peak else "")
            )
    total = sum(parts.values())
    print(
        f"\nour training step, {precision}: "
        + ", ".join(f"{part} {second:.4f} ({second / total:.1%})" for part, second in parts.items())
    )
    print(f"creators and losses together: {sum(parts[part] for part in CREATORS_AND_LOSSES) / total:.1%}")
    return {"seconds": seconds, "median": median, "peak_gb": memory, "parts": parts}


def main(config):
    """Measures as a `BenchConfig` says; prints tables."""
    device = pick_device(config.device)
    try:
        height, width = map(int, config.size.split("x"))
    except ValueError:
        height = width = 0
    if min(height, width) < 32:
        raise OptionError(f"--size must be HEIGHTxWIDTH, as in 600x800, each at least 32, not {config.size!r}")
    check_outputs(config.json)
    fast = pick_dtype("auto", device)
    precisions = ["fp32", "bf16"] if config.precision == "auto" and fast else [config.precision.replace("auto", "fp32")]
    machine = describe_environment(device)
    about = {"size": config.size, "steps": config.steps} | machine
    print(", ".join(f"{key} {value}" for key, value in about.items() if value is not None))
    results = {"about": about, "data_images_per_second": data_path(), "metric_seconds": metric()}
    print(
        f"data path: {results['data_images_per_second']:.0f} images/s from JPEG to tensor, one worker\n"
        f"metric: {results['metric_seconds']:.2f} s for 5000 images with 100 detections each"
    )
    memory = {}
    for precision in precisions:
        dtype = pick_dtype(precision, device)
        memory[precision] = {
            name: peak_memory(name, device, dtype, height, width)
            for name in contestants_for(device)
            if name != "floor, channels first"
        }
    for precision in precisions:
        seconds, parts = measure(device, pick_dtype(precision, device), height, width, config.steps)
        results[precision] = report(precision, seconds, memory[precision], parts)
    if len(precisions) == 2:
        share = results["bf16"]["median"]["ours"]["train"] / results["fp32"]["median"]["peer"]["train"]
        print(f"\nour training step in bf16 takes {share:.2f} of the peer's in fp32")
    if config.json:
        write_output(config.json, json.dumps(results, indent=1))


if __name__ == "__main__":
    fire.Fire(command(BenchConfig, main))
