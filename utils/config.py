"""The options of every command: one frozen dataclass each, and how a command line becomes one.

A field is `option(topic, default, meaning, source)`; its type says how the text of an option is read. `--help` and the
table in the README are made from these fields.
"""
import dataclasses
import difflib
import math
import signal
import sys
import types
import typing
from typing import Literal

import fire

ORDERED = (("min_size", "max_size"), ("rpn_neg_iou", "rpn_pos_iou"), ("neg_iou_lo", "neg_iou_hi"))
Numbers = tuple[float, ...]
Names = tuple[str, ...]


def option(topic, default, meaning, source="", least=None, most=None):
    """A field of an options class: what it belongs to, its default, what it means, where the number comes from.

    A number, or each of several, must be at least `least` (whole numbers: 1 unless something is said) and at most
    `most`. Several numbers with a `least` above 0 must not be none.
    """
    return dataclasses.field(default=default, metadata={
        "topic": topic, "meaning": meaning, "source": source, "least": least, "most": most})


def share(*args):
    """An `option` between 0 and 1: a probability, an IoU, a part of a whole."""
    return option(*args, least=0, most=1)


def sides(*args):
    """An `option` of numbers from which the sides of anchors come: at least one, none beyond all sense."""
    return option(*args, least=0.001, most=1000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectConfig:
    """What every command that detects has in common."""

    device: str = option("Machine", "auto", "auto (the GPU if there is one), cpu, cuda or cuda:N")
    precision: Literal["auto", "fp32", "bf16"] = option(
        "Machine", "auto", "fp32, bf16, or auto: bf16 where the processor has the instructions")
    deterministic: bool = option(
        "Machine", False, "torch's deterministic algorithms, where it has them; slower. A CPU needs it not")
    preprocess: Literal["auto", "torchvision", "caffe", "caffe-rgb-mean", "chainercv"] = option(
        "Image", "auto", "what the network sees: torchvision (0 to 1, normalised), caffe (BGR, 0 to 255 less the "
        "mean), caffe-rgb-mean (the same with the mean of red taken from blue, as simple-faster-rcnn-pytorch does), "
        "chainercv (RGB, 0 to 255 less the mean), auto: what the weights want, torchvision if nothing says it")
    score_thresh: float = share("Detection", 0.05, "detections less sure than this are dropped", "py-faster-rcnn")
    nms_thresh: float = share(
        "Detection", 0.3, "of two detections of a class with a larger IoU the better stays", "py-faster-rcnn")
    max_detections: int | None = option(
        "Detection", None, "keep only the best so many of an image", "py-faster-rcnn: 100")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """Where images and objects come from."""

    data: Literal["voc", "shapes"] = option(
        "Data", "voc", "voc: a folder in the VOC layout; shapes: a small data set, drawn on the spot")
    voc_data_dir: str = option(
        "Data", "datasets/VOCdevkit/VOC2007", "the folder with Annotations, ImageSets and JPEGImages")
    classes: Names = option(
        "Data", (), "names of the classes, or a file with one a line; empty: found in the annotations")
    invalid_boxes: Literal["error", "skip"] = option(
        "Data", "error", "boxes without area or outside the image: error, or skip to leave them out and to clip those "
        "that end far beyond it")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(FolderConfig):
    """What every command that reads images has in common."""

    num_workers: int | None = option(
        "Data", None, "processes that read images; empty: 0 on a CPU, up to 4 with a GPU", least=0, most=256)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(DetectConfig, DataConfig):
    """python train.py train: trains a detector, evaluates it, keeps everything in runs/<env>/."""

    download: bool = option("Data", False, "fetch VOC2007 (450 + 430 MB) into datasets/ first")
    train_split: str = option("Data", "trainval", "ImageSets/Main/<split>.txt to train on", "paper 4.1")
    eval_split: str = option("Data", "test", "the split to evaluate on", "paper 4.1")
    use_difficult: bool = option(
        "Data", False, "train on objects marked difficult, too", "py-faster-rcnn leaves them out")
    env: str = option("Run", "main", "name of the run: its folder runs/<env>/ and its Visdom environment")
    overwrite: bool = option("Run", False, "delete what an earlier run left in runs/<env>/")
    resume: bool = option("Run", False, "go on where runs/<env>/last.pth stopped")
    load_path: str | None = option(
        "Run", None, "a checkpoint whose weights to start from: ours, simple-faster-rcnn-pytorch's or chainercv's")
    reset_head: bool = option(
        "Run", False, "with --load-path: start the last two layers of the head anew, for other classes")
    seed: int = option("Run", 0, "of weights, order, flips and sampling", least=0, most=2**63 - 1)
    min_size: int = option("Image", 600, "shorter side after the resize, in pixels", "paper 3.3")
    max_size: int = option("Image", 1000, "longer side at most", "paper 3.3")
    pretrained: str = option(
        "Network", "imagenet", "imagenet, caffe, none, or a file with a VGG16 in the layout of torchvision, Caffe or "
        "chainercv")
    frozen_convs: int | None = option(
        "Network", None, "first convolutions that are not trained; empty: 4, random weights: 0", "Fast R-CNN 4.5",
        least=0, most=13)
    head_width: int = option("Network", 4096, "of fc6 and fc7; smaller ones start random", "VGG16", most=65536)
    dropout: float = share("Network", 0.0, "after fc6 and fc7", "the reference has 0.5")
    anchor_scales: Numbers = sides(
        "Network", (8, 16, 32), "side of the square anchor, in units of the stride 16", "paper 3.1.1")
    anchor_ratios: Numbers = sides("Network", (0.5, 1, 2), "height / width of the anchors", "paper 3.1.1")
    rpn_min_size: float = option(
        "Proposals", 16, "shortest side of a proposal, in pixels of the image", "py-faster-rcnn", least=0)
    rpn_nms_thresh: float = share(
        "Proposals", 0.7, "IoU above which the worse of two proposals is dropped", "paper 3.3")
    n_train_pre_nms: int = option("Proposals", 12000, "proposals before the suppression, in training", "py-faster-rcnn")
    n_train_post_nms: int = option("Proposals", 2000, "proposals after it, in training", "paper 3.3")
    n_test_pre_nms: int = option("Proposals", 6000, "proposals before the suppression, at test", "py-faster-rcnn")
    n_test_post_nms: int = option("Proposals", 300, "proposals after it, at test", "paper 3.3")
    rpn_n_sample: int = option("Targets", 256, "anchors in a mini-batch", "paper 3.1.3")
    rpn_pos_ratio: float = share("Targets", 0.5, "positives among them, at most", "paper 3.1.3")
    rpn_pos_iou: float = share("Targets", 0.7, "IoU from which an anchor is positive", "paper 3.1.2")
    rpn_neg_iou: float = share("Targets", 0.3, "IoU below which it is negative", "paper 3.1.2")
    n_sample: int = option("Targets", 128, "RoIs in a mini-batch", "Fast R-CNN 2.3: 64 of each of two images")
    pos_ratio: float = share("Targets", 0.25, "positives among them, at most", "Fast R-CNN 2.3")
    pos_iou: float = share("Targets", 0.5, "IoU from which a RoI is positive", "Fast R-CNN 2.3")
    neg_iou_hi: float = share("Targets", 0.5, "IoU below which a RoI is background", "Fast R-CNN 2.3")
    neg_iou_lo: float = share(
        "Targets", 0.0, "IoU from which a RoI is background", "py-faster-rcnn; Fast R-CNN 2.3: 0.1")
    rpn_sigma: float = option(
        "Loss", 3.0, "smooth L1 of the RPN turns linear at 1 / sigma²", "py-faster-rcnn", least=0.01)
    roi_sigma: float = option("Loss", 1.0, "the same in the head", "Fast R-CNN 2.3", least=0.01)
    epoch: int = option(
        "Optimization", 14, "passes over the training split", "50k and 70k steps on VOC07 trainval, py-faster-rcnn")
    max_steps: int | None = option("Optimization", None, "stop after so many optimizer steps")
    batch_size: int = option(
        "Optimization", 1, "images an optimizer step, in each process; they go through the network one by one",
        "py-faster-rcnn")
    lr: float = option(
        "Optimization", 1e-3, "learning rate of the weights; biases learn twice as fast", "paper 3.1.3", least=0)
    lr_decay: float = share("Optimization", 0.1, "the rate is multiplied by this", "paper 3.1.3")
    lr_decay_epoch: Numbers = option(
        "Optimization", (10,), "after this many epochs; several: a,b", "py-faster-rcnn", least=0)
    lr_decay_step: Numbers = option("Optimization", (), "after this many steps instead; several: a,b", least=0)
    momentum: float = share("Optimization", 0.9, "of SGD", "paper 3.1.3")
    weight_decay: float = option("Optimization", 5e-4, "of the weights, not of the biases", "paper 3.1.3", least=0)
    flip_prob: float = share("Optimization", 0.5, "how often an image is mirrored", "py-faster-rcnn")
    skip_nonfinite: int = option(
        "Optimization", 0, "leave out the update of so many steps whose loss is not finite; at one more: stop", least=0)
    eval_every: int = option("Watching", 1, "epochs between evaluations; 0: only at the end", least=0)
    plot_every: int = option("Watching", 40, "steps between points of the curves")
    visdom: Literal["auto", "off"] = option("Watching", "auto", "auto: plot to a Visdom server if one runs; off")
    visdom_port: int = option("Watching", 8097, "its port on this machine", most=65535)
    tensorboard: bool = option("Watching", False, "write files for TensorBoard, too, if its package is installed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnchorConfig(FolderConfig):
    """python train.py anchors: how well anchors fit the boxes of a data set, and which scales and ratios fit better."""

    train_split: str = option("Data", "trainval", "ImageSets/Main/<split>.txt whose boxes count")
    use_difficult: bool = option("Data", False, "objects marked difficult count, too")
    min_size: int = option("Image", 600, "shorter side after the resize, as in training", "paper 3.3")
    max_size: int = option("Image", 1000, "longer side at most", "paper 3.3")
    anchor_scales: Numbers = sides(
        "Network", (8, 16, 32), "the anchors in use: side of the square one, in units of the stride 16", "paper 3.1.1")
    anchor_ratios: Numbers = sides("Network", (0.5, 1, 2), "their height / width", "paper 3.1.1")
    k: int | None = option("Run", None, "how many anchors a cell to propose; empty: as many as are in use")
    seed: int = option("Run", 0, "of the random starts", least=0)
    out: str = option("Run", "anchors.png", "the picture")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckConfig(FolderConfig):
    """python train.py check: looks for mistakes in a data set, lists them all, and prints what is in it.

    Training and evaluation look for the same at their start, but of images they read the header and the last bytes,
    and decode those that seem cut off; here every image is decoded.
    """

    splits: Names = option(
        "Data", (), "ImageSets/Main/<split>.txt, several: a,b; empty: train, val, trainval and test, as far as they "
        "are there, else all files there")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig(DetectConfig, DataConfig):
    """python eval.py: average precision of a checkpoint, class by class."""

    load_path: str = option(
        "Run", dataclasses.MISSING, "the checkpoint: ours, simple-faster-rcnn-pytorch's or chainercv's")
    json: str | None = option("Run", None, "a file to write the results to")
    data: Literal["voc", "shapes"] | None = option(
        "Data", None, "voc or shapes; empty: what the checkpoint was trained on")
    voc_data_dir: str | None = option(
        "Data", None, "the folder in the VOC layout; empty: what the checkpoint was trained on")
    split: str | None = option("Data", None, "ImageSets/Main/<split>.txt; empty: what training evaluated on")
    invalid_boxes: Literal["error", "skip"] | None = option("Data", None, "error or skip; empty: as in training")
    limit: int | None = option("Data", None, "only the first so many images")
    metric: Literal["voc07", "voc", "coco"] = option(
        "Metric", "voc07", "voc07: 11 points; voc: area under the curve, as from VOC2010 on; coco: mean over IoU 0.5 "
        "to 0.95, through pycocotools")
    proposals: bool = option("Metric", False, "instead of the detections, the recall of the RPN's proposals")
    plot: str | None = option("Metric", None, "with --proposals: the picture; empty: recall.png beside the checkpoint")
    precision: Literal["auto", "fp32", "bf16"] = option(
        "Machine", "fp32", "fp32, bf16, or auto: bf16 where the processor has the instructions")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictConfig(DetectConfig):
    """python predict.py IMAGE_OR_FOLDER_OR_PATTERN ...: boxes drawn into pictures, and a list of them."""

    load_path: str = option(
        "Run", dataclasses.MISSING, "the checkpoint: ours, simple-faster-rcnn-pytorch's or chainercv's")
    out: str = option(
        "Run", "predictions", "the folder for <image name>.png, contact_sheet.png (the first 16) and predictions.json: "
        "[{image, bbox: [y_min, x_min, y_max, x_max], label, name, score}]")
    coco_json: str | None = option(
        "Run", None, "a file for COCO's results: [{image_id, category_id, bbox: [x, y, width, height], score}]; "
        "image_id is the name of the picture, a number if all names are digits; category_id is label + 1")
    limit: int | None = option("Run", None, "only the first so many images")
    classes: Names = option("Run", (), "names of the classes, where the checkpoint has none")
    score_thresh: float = share("Detection", 0.7, "detections less sure than this are dropped")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """python bench.py: speed and memory beside a peer and a floor."""

    device: str = option("Machine", "auto", "auto (the GPU if there is one), cpu, cuda or cuda:N")
    precision: Literal["auto", "fp32", "bf16"] = option(
        "Machine", "auto", "fp32, bf16, or auto: both, where the processor has the instructions")
    size: str = option("Image", "600x800", "height x width of the image, as it is and as the network sees it")
    steps: int = option("Run", 5, "rounds, after four to warm up; the figures are their medians")
    json: str | None = option("Run", None, "a file to write the figures to")


class OptionError(ValueError):
    """An option that is not there, or a value that it cannot have; the message says what to do."""


def make_config(config_class, options, stored=None):
    """Builds a config from the texts of a command line.

    Args:
        config_class: one of the classes above.
        options: name -> text, as fire gives them, dashes turned into underscores.
        stored: name -> value, what holds for options that are not given, instead of the defaults.

    Raises:
        OptionError: an unknown option (names the nearest), a text that its type cannot read, a number out of its range,
            one that is missing.
    """
    hints = typing.get_type_hints(config_class)
    for name in options:
        if name not in hints:
            near = difflib.get_close_matches(name, hints, 1, cutoff=0)[0]
            raise OptionError(f"there is no option --{dashed(name)}: did you mean --{dashed(near)}? --help lists all")
    values = dict(stored or {}) | {name: _read(name, str(text), hints[name]) for name, text in options.items()}
    for field in dataclasses.fields(config_class):
        if values.setdefault(field.name, field.default) is dataclasses.MISSING:
            raise OptionError(f"--{dashed(field.name)} is missing: {field.metadata['meaning']}")
        _check_range(field, values[field.name], hints[field.name])
    for low, high in ORDERED:
        if low in values and high in values and values[low] > values[high]:
            raise OptionError(f"--{dashed(low)}={as_text(values[low])} must not be above "
                              f"--{dashed(high)}={as_text(values[high])}")
    return config_class(**values)


def _check_range(field, value, hint):
    """Raises OptionError unless a number, or each of several, is finite and in the range of its option."""
    name, limits = f"--{dashed(field.name)}", field.metadata
    numbers = [part for part in (value if isinstance(value, tuple) else (value,)) if type(part) in (int, float)]
    least = limits["least"]
    if least is None and hint in (int, int | None):
        least = 1
    for number in numbers:
        shown = as_text(value) if isinstance(value, tuple) else value
        if not math.isfinite(number):
            raise OptionError(f"{name} must be a finite number, not {shown}")
        if least is not None and number < least:
            raise OptionError(f"{name} must be at least {least}, not {shown}")
        if limits["most"] is not None and number > limits["most"]:
            raise OptionError(f"{name} must be at most {limits['most']}, not {shown}")
    if value == () and least:
        raise OptionError(f"{name} must name a number at least, as in 8,16,32")


def check_stored(config_class, stored):
    """Raises OptionError unless all values of `stored`, name -> value, could have come from a command line."""
    for name, hint in typing.get_type_hints(config_class).items():
        if name in stored and not _fits(stored[name], hint):
            raise OptionError(f"{name!r} is {stored[name]!r}")
    strange = [name for name in stored if name not in {field.name for field in dataclasses.fields(config_class)}]
    if strange:
        raise OptionError(f"there is no option {strange[0]!r}")
    make_config(config_class, {}, stored)


def _fits(value, hint):
    """Whether `value` has the type `hint`; a whole number is a number, too."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is Literal:
        return value in args
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(part, args[0]) for part in value)
    return type(value) is hint or (hint is float and type(value) is int)


def help_text(config_class):
    """What `--help` prints: every option with its default, meaning and source, by topic."""
    lines = [config_class.__doc__]
    for topic, fields in by_topic(config_class).items():
        lines.append(f"\n{topic}")
        for field in fields:
            source = f" ({field.metadata['source']})" if field.metadata["source"] else ""
            lines.append(f"  --{dashed(field.name)}={as_text(field.default)}")
            lines.append(f"        {field.metadata['meaning']}{source}")
    return "\n".join(lines)


def by_topic(config_class):
    """Topic -> fields of a config class, both in the order in which they were first written."""
    topics = {}
    for field in dataclasses.fields(config_class):
        topics.setdefault(field.metadata["topic"], []).append(field)
    return topics


def command(config_class, main, errors=(), positional=False, stored=None):
    """A function for fire that calls `main` with the config of a command line.

    fire complains of what it does not know only after the call; this one takes everything and checks it first.

    Args:
        config_class: one of the classes above.
        main: is called with the config, then with the words that are no options.
        errors: exception classes that are the user's to mend: one line and exit code 1, no stack trace.
        positional: whether there may be such words.
        stored: options -> what `make_config` takes under that name.
    """
    @fire.decorators.SetParseFn(str)
    def call(*words, **options):
        if {"h", "help"} & options.keys():
            print(help_text(config_class))
            return
        try:
            if words and not positional:
                raise OptionError(f"{words[0]!r} is not an option: options are written --name=value, --help lists them")
            main(make_config(config_class, options, stored(options) if stored else None), *words)
        except (OptionError, *errors) as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)

    return call


def as_text(value):
    """A value as it is written on a command line."""
    if isinstance(value, tuple):
        return ",".join(map(as_text, value))
    if value is None or value is dataclasses.MISSING:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def dashed(name):
    """`min_size` as it is written on a command line: min-size."""
    return name.replace("_", "-")


def _read(name, text, hint):
    """The value of type `hint` that `text` stands for."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):  # X | None
        if text in ("", "None"):
            return None
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) is Literal and text not in typing.get_args(hint):
        raise OptionError(f"--{dashed(name)} must be one of {', '.join(typing.get_args(hint))}, not {text!r}")
    try:
        if typing.get_origin(hint) is Literal:
            return text
        if hint is bool:
            return {"true": True, "false": False}[text.lower()]
        if typing.get_origin(hint) is tuple:
            parts = text.strip("()[]").split(",")
            return tuple(typing.get_args(hint)[0](part.strip(" '\"")) for part in parts if part.strip())
        return hint(text)
    except (ValueError, KeyError):
        wanted = {bool: "True or False", int: "a whole number", float: "a number"}.get(hint, "numbers, as in 8,16,32")
        raise OptionError(f"--{dashed(name)} must be {wanted}, not {text!r}") from None
