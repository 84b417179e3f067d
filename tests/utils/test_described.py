"""Checkpoints that load, but say nonsense of their network: one sentence with the file's name."""
import copy
import math

import pytest
import tiny
import torch

import model
from utils.checkpoint import CheckpointError
from utils.described import check_described

KEPT = {"n_fg_class": 2, "head_width": 16, "anchor_scales": (1, 2), "min_size": 48, "max_size": 64,
        "proposal": {"min_size": 2.0, "n_test_pre_nms": 100}}
FINE = ((0.5, 0.25, 0.125), (1, 2, 3), 255.0, "BGR")
NAN, HUGE = math.nan, 10**9


@pytest.fixture(scope="module")
def narrow():
    """A checkpoint of a narrow network, and the tests' own VGG16 until the module ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.vgg16.LAYERS", tiny.NARROW)
        weights = model.build(**KEPT, preprocessing=FINE).state_dict()
        yield {"model": weights, "build": {"name": "vgg16"} | KEPT, "class_names": ["cat", "Vögel"],
               "preprocessing": FINE, "config": {"lr": 0.1, "lr_decay_epoch": (3,), "later": 1}, "epoch": 0, "step": 3}


def test_what_a_training_writes_is_accepted(narrow):
    check_described("a.pth", narrow, model.build)
    lists = {"anchor_scales": [1, 2], "dropout": 0}
    check_described("a.pth", narrow | {"build": narrow["build"] | lists}, model.build)


@pytest.mark.parametrize(("part", "key", "value"), [
    ("build", "name", 5), ("build", "name", "resnet"), ("build", "n_fg_class", "x"), ("build", "n_fg_class", True),
    ("build", "n_fg_class", 0), ("build", "n_fg_class", HUGE), ("build", "n_fg_class", None),
    ("build", "head_width", -3), ("build", "head_width", HUGE), ("build", "dropout", NAN), ("build", "dropout", 2.0),
    ("build", "min_size", -5), ("build", "min_size", 65), ("build", "anchor_scales", (-1,)),
    ("build", "anchor_scales", (1, 2, 3)), ("build", "anchor_ratios", ("x",)), ("build", "proposal", 5),
    ("build", "proposal", {"nms_thresh": -3}), ("build", "proposal", {"n_test_pre_nms": -4}),
    ("build", "pretrained", "imagenet"), ("build", 7, 7), ("config", "data", 5), ("config", "eval_split", 7),
    ("model", "rpn.conv.bias", torch.zeros(3)), ("model", "rpn.conv.bias", 5), ("model", "new", torch.zeros(3)),
    ("model", "rpn.conv.bias", torch.zeros(512).to_sparse()), ("model", 5, torch.zeros(3))])
def test_a_value_that_no_training_could_have_written(narrow, part, key, value):
    with pytest.raises(CheckpointError, match=r"^a\.pth do\w+ not [^\n]+$"):
        check_described("a.pth", narrow | {part: narrow[part] | {key: value}}, model.build)


@pytest.mark.parametrize("key", ["n_fg_class", "head_width"])
def test_a_value_that_is_missing(narrow, key):
    changed = copy.copy(narrow["build"])
    del changed[key]
    with pytest.raises(CheckpointError, match=rf"^a\.pth does not describe a network \([^\n]*'{key}'"):
        check_described("a.pth", narrow | {"build": changed}, model.build)


@pytest.mark.parametrize(("part", "value"), [
    ("preprocessing", value) for value in (
        None, 5, (1, 2, 3, 4, 5), ((1, 1), (1, 1, 1), 1.0, "RGB"), ((1, 1, 1), (0, 1, 1), 1.0, "RGB"),
        ((NAN, 1, 1), (1, 1, 1), 1.0, "RGB"), ((1, 1, 1), (1, 1, 1), 0, "RGB"), ((1, 1, 1), (1, 1, 1), 1.0, "XYZ"),
        (("1", 1, 1), (1, 1, 1), 1.0, "RGB"))]
    + [("class_names", [5, "dog"]), ("class_names", ["a\nb", "c"]), ("epoch", "x"), ("step", -1), ("step", None)])
def test_a_part_that_no_training_could_have_written(narrow, part, value):
    with pytest.raises(CheckpointError, match=r"^a\.pth does not describe a network \([^\n]+$"):
        check_described("a.pth", narrow | {part: value}, model.build)
