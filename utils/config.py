"""Options of the commands: one frozen pydantic model per command, read from a command line by python-fire.

A field is `option(default, topic, meaning, source)`, or `own(topic, meaning, source)` if its default belongs to the
model; its type and limits say which values are valid. `--help` and docs/options.md are made from these fields.
"""

import os
import re
import shlex
import sys
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeFloat, NonNegativeInt

MODEL, PRETRAINED = "vgg16", "imagenet"  # the defaults; `--help` shows the values of this model
ORDERED = (("min_size", "max_size"), ("rpn_neg_iou", "rpn_pos_iou"), ("neg_iou_lo", "neg_iou_hi"))
CLASSES_OF_CHECKPOINT = "only for a checkpoint without class names: a,b,c in the order of its labels, or a file of them"
PROPOSALS = "Fast R-CNN on these proposals, FILE.npz or sliding-windows, instead of the RPN's"
DETECTOR = "checkpoint: ours, torchvision's (or its name, as resnet50_fpn), simple-faster-rcnn-pytorch's or chainercv's"


class OptionError(ValueError):
    """An unknown option or an invalid value; the message says what to do."""


def option(default: Any, topic: str, meaning: str, source: str = "", **limits: Any) -> Any:
    """Declare an option.

    Args:
        default: value if the option is not given; `...` if it must be given.
        topic: heading of `--help` under which it is listed.
        meaning: explanation, without a full stop.
        source: publication or program from which the default is taken.
        limits: further arguments of `pydantic.Field`: ge, le, or alias where pydantic uses the name itself.
    """
    return Field(default, description=meaning, json_schema_extra={"topic": topic, "source": source}, **limits)


def own(topic: str, meaning: str, source: str = "", **limits: Any) -> Any:
    """Declare an option whose default is None, the model's own value; see `command.command`."""
    field = option(None, topic, meaning, source, **limits)
    field.json_schema_extra["own"] = True
    return field


def _split(value):
    """Split '8,16,32', '(8, 16)', "['cat', 'dog']" or '~/names.txt' into its parts; return other values unchanged."""
    if not isinstance(value, str):
        return value
    parts = re.sub(r"^\s*[(\[](.*)[)\]]\s*$", r"\1", value).split(",")  # not those of a name: a,b (old)
    parts = [re.sub(r"^(['\"])(.*)\1$", r"\2", part.strip()).strip() for part in parts]
    return tuple(map(os.path.expanduser, filter(None, parts)))


def true_or_false(value):
    """Return the boolean that a text means; return other values unchanged."""
    return {"true": True, "false": False}.get(str(value).lower(), value)


Flag = Annotated[bool, Field(strict=True), BeforeValidator(true_or_false)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Text = pydantic.InstanceOf[str]  # may name a file whose name is not UTF-8
Pixels = Annotated[float, Field(ge=0, allow_inf_nan=True)]
Ranks = Annotated[tuple[Count, Count], BeforeValidator(_split)]
PathText = Annotated[Text, Field(min_length=1), AfterValidator(os.path.expanduser)]  # of every path, in or out
Names = Annotated[tuple[Text, ...], BeforeValidator(_split)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0, le=2**63 - 1)], ...], Field(min_length=1), BeforeValidator(_split)]
Times = Annotated[tuple[NonNegativeFloat, ...], BeforeValidator(_split)]
Sides = Annotated[tuple[Annotated[float, Field(ge=0.001, le=1000)], ...], Field(min_length=1), BeforeValidator(_split)]
Precision = Literal["auto", "fp32", "bf16"]
RoIOp = Literal["pool", "align", "warp"]
Objectness = Literal["softmax", "sigmoid"]
OnInvalid = Literal["error", "skip"]
Workers = Annotated[int, Field(ge=0, le=256)]
Width = Annotated[int, Field(ge=1, le=65536)]


class Config(pydantic.BaseModel):
    """Base of all options classes."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @pydantic.model_validator(mode="after")
    def _check_order(self):
        for names in ORDERED:
            low, high = (getattr(self, name, None) for name in names)
            if low is not None and high is not None and low > high:
                small, large = (f"--{dashed(name)}={as_text(getattr(self, name))}" for name in names)
                raise OptionError(f"{small} must not be greater than {large}")
        return self


class DetectConfig(Config):
    """Options of every command that detects."""

    device: str = option("auto", "Device", "auto (the GPU if there is one), cpu, cuda or cuda:N")
    precision: Precision = option("auto", "Device", "fp32, bf16, or auto: bf16 if the hardware has instructions for it")
    deterministic: Flag = option(False, "Device", "use deterministic algorithms where torch has them; only for a GPU")
    preprocess: Literal["auto", "torchvision", "caffe", "caffe-rgb-mean", "chainercv"] = option(
        "auto", "Image", "how pixels are scaled, see docs/weights.md; auto: as the weights state, else torchvision"
    )
    score_thresh: Share | None = own("Detection", "drop detections with a lower score", "py-faster-rcnn")
    nms_thresh: Share | None = own("Detection", "IoU threshold of NMS, class by class", "py-faster-rcnn")
    max_detections: Count | None = own("Detection", "detections to keep per image; empty: all", "py-faster-rcnn: 100")


class SourceConfig(Config):
    """Options that name a data set."""

    data: str = option("voc", "Data", "NAME of data/NAME_dataset.py: voc (VOC layout), coco, shapes (small, synthetic)")
    voc_data_dir: PathText = option("datasets/VOCdevkit/VOC2007", "Data", "of images, annotations, splits; or a,b")
    coco_images: PathText | None = option(None, "Data", "--data=coco: folder of the images to train on")
    coco_annotations: PathText | None = option(None, "Data", "--data=coco: JSON file of their objects")
    coco_eval_images: PathText | None = option(None, "Data", "--data=coco: folder of the images to evaluate on")
    coco_eval_annotations: PathText | None = option(None, "Data", "--data=coco: JSON file of their objects")


class CheckpointConfig(DetectConfig, SourceConfig):
    """Options of the commands that apply a checkpoint; of the data, empty: as in training."""

    data: str | None = option(None, "Data", "NAME of data/NAME_dataset.py; empty: as in training")
    voc_data_dir: PathText | None = option(None, "Data", "directory of the data set; not given: as in training")
    classes: Names = option((), "Data", CLASSES_OF_CHECKPOINT)
    invalid_images: OnInvalid | None = option(None, "Data", "error or skip; empty: as in training")
    limit: Count | None = option(None, "Data", "process only this number of first images")
    coco_json: PathText | None = option(None, "Run", "file for the detections in COCO's format for results")
    svd: Ranks | None = option(None, "Detection", "singular values kept of fc6, fc7: 1024,256", "Fast R-CNN 3.1, 4.4")


class DatasetConfig(SourceConfig):
    """Options of every command that reads a data set."""

    classes: Names = option((), "Data", "class names a,b,c, or a file with one per line; empty: as in the annotations")
    invalid_boxes: OnInvalid = option("error", "Data", "skip: drop objects without a box in the image, clip others")
    invalid_images: OnInvalid = option("error", "Data", "skip: decode all, leave out unreadable ones")
    unknown_classes: Literal["error", "ignore"] = option("error", "Data", "ignore: leave out objects of other classes")
    val_ratio: Share = option(0.2, "Data", "fraction of the images to evaluate on, if there are no split files")

    def dataset_options(self) -> dict[str, Any]:
        """Return the options that say which data set is read and what of it, where they differ from their defaults."""
        return self.model_dump(include=DatasetConfig.model_fields.keys(), exclude_defaults=True)


class TrainInputConfig(DatasetConfig):
    """Options that determine the splits, the boxes that training sees, and its anchors."""

    train_split: str = option("trainval", "Data", "ImageSets/Main/SPLIT.txt to train on", "paper 4.1")
    eval_split: str = option("test", "Data", "ImageSets/Main/SPLIT.txt to evaluate on", "paper 4.1")
    use_difficult: Flag = option(False, "Data", "include objects marked difficult", "py-faster-rcnn leaves them out")
    seed: int = option(0, "Run", "seed of weights, image order, flips and sampling", ge=0, le=2**63 - 1)
    model: str = option(MODEL, "Model", "NAME of model/NAME.py, or one of the NAMES that such a file lists")
    anchor_scales: Sides | None = own("Model", "sides of square anchors, in units of the stride", "paper 3.3")
    anchor_ratios: Sides | None = own("Model", "height / width of the anchors", "paper 3.3")
    min_size: Count | None = own("Image", "length of the shorter side after resizing, in pixels", "paper 3.3")
    max_size: Count | None = own("Image", "upper limit of the longer side, in pixels", "Fast R-CNN 5.2")


class WorkerConfig(Config):
    """Option of every command that loads many images."""

    num_workers: Workers | None = option(None, "Data", "processes loading images; empty: 0 on a CPU, up to 4 on a GPU")


class TrainConfig(DetectConfig, WorkerConfig, TrainInputConfig):
    """python train.py train: Train a detector, evaluate it, and write everything to runs/ENV/.

    example: python train.py train --env=mine --voc-data-dir=MYDATA --train-split=train --eval-split=val
    """

    download: Flag = option(False, "Data", "first download VOC2007 (450 + 430 MB) into datasets/")
    flip_prob: Share = option(0.5, "Data", "probability of a horizontal flip", "Fast R-CNN 2.3")
    env: str = option("main", "Run", "name of the run, for its directory runs/ENV/ and its Visdom environment")
    overwrite: Flag = option(False, "Run", "delete an earlier run in runs/ENV/")
    resume: Flag = option(False, "Run", "continue from runs/ENV/last.pth")
    load_path: PathText | None = option(None, "Run", f"start from the weights of this {DETECTOR}")
    reset_head: Flag = option(False, "Run", "with --load-path: initialize the head's last two layers, for new classes")
    pretrained: PathText = option(PRETRAINED, "Model", "weights: imagenet, caffe (VGG16), coco (FPN), none, or a file")
    frozen_convs: NonNegativeInt | None = own("Model", "first convolutions that are not trained", "paper 3.1.3")
    trainable_layers: NonNegativeInt | None = own("Model", "last stages of the backbone that are trained, of 5 or 6")
    batch_norm: Literal["frozen", "trained"] | None = own("Model", "frozen: as in the weights; trained: from the batch")
    head_width: Width | None = own("Model", "width of fc6 and fc7; random weights if not the default", "VGG16")
    roi_op: RoIOp | None = own("Model", "pool, align (arXiv 1703.06870) or warp (1512.04412)", "Fast R-CNN 2.1")
    rpn_objectness: Objectness | None = own("Model", "per anchor: softmax of two scores, sigmoid of one", "paper 3.1.1")
    dropout: Share | None = own("Model", "dropout probability after fc6 and fc7", "py-faster-rcnn: 0.5")
    proposals_file: PathText | None = option(None, "Proposals", PROPOSALS)
    rpn_min_size: NonNegativeFloat | None = own("Proposals", "minimum side, in pixels of the image", "py-faster-rcnn")
    rpn_nms_thresh: Share | None = own("Proposals", "IoU threshold of NMS", "paper 3.3")
    rpn_score_thresh: Share | None = own("Proposals", "drop proposals with a lower score")
    n_train_pre_nms: Count | None = own("Proposals", "number before NMS, in training", "py-faster-rcnn")
    n_train_post_nms: Count | None = own("Proposals", "number after NMS, in training", "paper 3.3")
    n_test_pre_nms: Count | None = own("Proposals", "number before NMS, at test time", "py-faster-rcnn")
    n_test_post_nms: Count | None = own("Proposals", "number after NMS, at test time", "paper 4.1")
    rpn_n_sample: Count | None = own("Targets", "anchors per mini-batch of the RPN", "paper 3.1.3")
    rpn_pos_ratio: Share | None = own("Targets", "maximum share of positive anchors", "paper 3.1.3")
    rpn_pos_iou: Share | None = own("Targets", "IoU from which an anchor is positive", "paper 3.1.2")
    rpn_neg_iou: Share | None = own("Targets", "IoU below which an anchor is negative", "paper 3.1.2")
    allowed_border: Pixels | None = own("Targets", "anchors may cross the border by so much; inf: all", "paper 3.3")
    n_sample: Count | None = own("Targets", "RoIs per mini-batch of the head", "Fast R-CNN 2.3: 64 of each of 2 images")
    pos_ratio: Share | None = own("Targets", "maximum share of positive RoIs", "Fast R-CNN 2.3")
    pos_iou: Share | None = own("Targets", "IoU from which a RoI is positive", "Fast R-CNN 2.3")
    neg_iou_hi: Share | None = own("Targets", "IoU below which a RoI is background", "Fast R-CNN 2.3")
    neg_iou_lo: Share | None = own("Targets", "lowest IoU of a background RoI", "py-faster-rcnn; Fast R-CNN 2.3: 0.1")
    rpn_sigma: float | None = own("Loss", "RPN: smooth L1 is linear beyond 1 / sigma²", "py-faster-rcnn", ge=0.01)
    rpn_lambda: NonNegativeFloat | None = own(
        "Loss", "RPN: weight of box loss over anchor positions (paper: 10); empty: 1, over samples", "py-faster-rcnn"
    )
    roi_sigma: float | None = own("Loss", "head: smooth L1 is linear beyond 1 / sigma²", "Fast R-CNN 2.3", ge=0.01)
    epoch: Count | None = own("Optimizer", "passes over the training split", "py-faster-rcnn: 70k steps on VOC2007")
    max_steps: Count | None = option(None, "Optimizer", "stop after this number of optimizer steps")
    batch_size: Count = option(1, "Optimizer", "images per step and process", "py-faster-rcnn")
    batching: Literal["single", "padded"] | None = own(
        "Optimizer", "single: an image of a step at a time; padded: all together, padded to one size"
    )
    lr: NonNegativeFloat | None = own("Optimizer", "learning rate", "paper 3.1.3")
    lr_decay: Share | None = own("Optimizer", "factor by which the rate decays", "paper 3.1.3")
    lr_decay_epoch: Times | None = own("Optimizer", "decay after epochs a,b; () for none", "py-faster-rcnn: 50k steps")
    lr_decay_step: Times = option((), "Optimizer", "decay after these steps, not after epochs: a,b")
    lr_warmup_steps: NonNegativeInt | None = own("Optimizer", "linear warm-up, at most 1 epoch", "py-faster-rcnn: none")
    joint: Literal["approximate", "non-approximate"] = option(
        "approximate", "Optimizer", "non-approximate: the RPN learns from the head's losses, by RoIWarp", "paper 3.2"
    )
    optimizer: Literal["sgd", "adam"] = option("sgd", "Optimizer", "sgd or adam, whose rate is lower", "paper 3.1.3")
    momentum: Share | None = own("Optimizer", "momentum of SGD", "paper 3.1.3")
    weight_decay: NonNegativeFloat | None = own("Optimizer", "of weights", "paper 3.1.3")
    bias_lr_mult: NonNegativeFloat | None = own("Optimizer", "rate of biases, in units of --lr", "Fast R-CNN 2.3")
    bias_decay: NonNegativeFloat | None = own("Optimizer", "weight decay of biases", "Fast R-CNN 2.3: that of weights")
    eval_every: NonNegativeInt = option(1, "Logging", "epochs between evaluations; 0: only at the end")
    plot_every: Count = option(40, "Logging", "steps between points of the curves")
    visdom: Literal["auto", "off"] = option("auto", "Logging", "auto: plot to a Visdom server if one is running; off")
    visdom_port: Count = option(8097, "Logging", "port of the Visdom server on this machine", le=65535)
    tensorboard: Flag = option(False, "Logging", "also write TensorBoard files")

    @pydantic.model_validator(mode="after")
    def _check_joint(self):
        if self.joint == "non-approximate" and self.roi_op != "warp":
            raise OptionError(f"--roi-op={self.roi_op} has no gradient for boxes: leave it out, or --joint=approximate")
        return self


class EvalConfig(WorkerConfig, CheckpointConfig):
    """python eval.py: Compute the average precision of a checkpoint, class by class.

    example: python eval.py --load-path=runs/mine/last.pth --split=val --json=runs/mine/eval.json
    """

    load_path: PathText = option(..., "Run", f"required; {DETECTOR}")
    json_path: PathText | None = option(None, "Run", "file to write the results to", alias="json")
    precision: Precision = option("fp32", "Device", "fp32, bf16, or auto: bf16 if the hardware has instructions for it")
    split: str | None = option(None, "Data", "ImageSets/Main/SPLIT.txt; empty: --eval-split of the training")
    invalid_boxes: OnInvalid | None = option(None, "Data", "error or skip; empty: as in training")
    unknown_classes: Literal["error", "ignore"] | None = option(None, "Data", "error or ignore; empty: as in training")
    val_ratio: Share = option(0, "Data", "fraction to evaluate on if neither data nor run states splits; 0: all images")
    metric: Literal["voc07", "voc", "coco"] | None = option(
        None, "Metric", "voc07: 11 points, voc: area, coco: IoU 0.5 to 0.95; empty: the usual one of the data set"
    )
    proposals: Flag = option(False, "Metric", "compute the recall of the RPN's proposals instead", "paper, figure 4")
    ablate: Flag = option(False, "Metric", "compute AP for fewer proposals, without NMS, cls or reg", "paper, table 2")
    detector: PathText | None = option(None, "Metric", f"with --ablate: classify the proposals by this {DETECTOR}")
    proposals_file: PathText | None = option(None, "Metric", f"{PROPOSALS}; empty: as in training")
    plot: PathText | None = option(None, "Metric", "with --proposals, --ablate: file for the figure")


class PredictConfig(CheckpointConfig):
    """python predict.py IMAGE_OR_DIRECTORY_OR_PATTERN ...: Detect objects, draw and list their boxes.

    example: python predict.py photos/ --load-path=runs/mine/last.pth --out=runs/mine/predictions
    """

    load_path: PathText = option("resnet50_fpn", "Run", f"{DETECTOR}; the default is fetched and knows COCO's classes")
    out: PathText = option("runs/predictions", "Run", "directory for NAME.png, contact_sheet.png and predictions.json")
    split: str | None = option(None, "Data", "split of the data set to detect on, instead of images that are named")
    score_thresh: Share = option(0.7, "Detection", "drop detections with a lower score")


def as_text(value: Any) -> str:
    """Return a value as it is written on a command line."""
    if isinstance(value, list | tuple):
        return ",".join(map(as_text, value))
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def as_words(values: dict[str, Any]) -> str:
    """Return options as they are written on a command line, quoted for a shell."""
    return " ".join(f"--{dashed(name)}={quoted(as_text(value))}" for name, value in values.items())


def quoted(word: object) -> str:
    """Return a word as a shell takes it; on Windows, where cmd.exe knows no single quotes, in double ones if at all."""
    word = str(word)
    if sys.platform != "win32":
        return shlex.quote(word)
    return word if re.fullmatch(r"[\w@+=:,./\\~-]+", word) else '"{}"'.format(word.replace('"', r"\""))


def counted(number: int, noun: str) -> str:
    """Return '1 class' or '2 classes'."""
    return f"{number} {noun}" + ("" if number == 1 else "es" if noun.endswith("s") else "s")


def dashed(name: str) -> str:
    """Return `min_size` as it is written on a command line: min-size."""
    return name.replace("_", "-")
