"""Detectors of torchvision, from files as its programs save them and fetched by name, in predict, eval and train."""

import argparse
import json

import fixtures
import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import detection
from torchvision.ops import FrozenBatchNorm2d

import eval as evaluation
import model
import predict
import train
from model.resnet_fpn import NAMES
from training import build_model
from utils.checkpoint import PUBLISHED, CheckpointError, check_compatible, load_checkpoint, open_checkpoint
from utils.checkpoint import resolve_class_names as resolve
from utils.command import parse_options
from utils.config import EvalConfig, PredictConfig, TrainConfig
from utils.convert_weights import convert_backbone, convert_detector

NAME = "mobilenet_v3_large_320_fpn"
CPU = {"device": "cpu", "precision": "fp32"}


def build(name=NAME, n_class=91):
    """Build torchvision's detector with random weights, and biases of classes that make it detect something."""
    torch.manual_seed(0)
    kind = f"fasterrcnn_{name}" if "rcnn" not in name else name
    theirs = getattr(detection, kind)(weights=None, weights_backbone=None, num_classes=n_class)
    bias = nn.init.normal_(theirs.roi_heads.box_predictor.cls_score.bias)
    if n_class == 91:
        bias.data[[1, 12]] = 3  # person, N/A
    return theirs.eval()


def shapes(name, n_class=4):
    """The tensors of a detector of torchvision, without values."""
    with torch.device("meta"):
        return build(name, n_class).state_dict()


@pytest.fixture(scope="module")
def home(place):
    """The current folder: data in voc/, two files of a detector of two classes, and torch's cache, which has NAME."""
    own, options = build(n_class=3), argparse.Namespace(model=f"fasterrcnn_{NAME}", lr_steps=[16, 22], weights=None)
    optimizer = torch.optim.SGD(own.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [16, 22])
    state = {"model": own.state_dict(), "optimizer": optimizer.state_dict(), "lr_scheduler": schedule.state_dict()}
    torch.save(state | {"args": options, "epoch": 3}, "own.pth")  # as references/detection/train.py
    torch.save(own.state_dict(), "plain.pth")
    (place / "hub/checkpoints").mkdir(parents=True)
    torch.save(build().state_dict(), place / f"hub/checkpoints/fasterrcnn_{NAME}-907ea3f9.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(place))
        yield place


# What a file is


def test_every_model_with_a_pyramid_is_published():
    assert PUBLISHED == NAMES  # layers may not import one another


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_detector_is_recognised_by_its_tensors(name):
    state = shapes(name)
    older = {key.replace("conv.0.0.", "conv.").replace("blocks.0.0.", "blocks.0."): state[key] for key in state}
    prefixed = {f"module.{key}": value for key, value in state.items()}
    for layout in (state, older, {"model": state, "epoch": 3}, {"state_dict": prefixed}):
        found = convert_detector(layout, hint=f"fasterrcnn_{name}-1.pth")
        assert found["build"] == {"name": name, "n_fg_class": 3}
        assert (found["class_names"], found["preprocessing"], found["step"]) == ([], "torchvision", None)
        assert found["layout"].startswith(f"torchvision, {name}")
        assert len(found["model"]) == len(state)


def test_which_of_two_with_the_same_tensors():
    state = {"model": shapes(NAME)}
    found = convert_detector(state, "a.pth")
    assert found["build"]["name"] == "mobilenet_v3_large_fpn"
    assert found["layout"].endswith(
        "(mobilenet_v3_large_320_fpn, which has the same tensors, needs _320_ in the file's name)"
    )
    options = argparse.Namespace(model="fasterrcnn_mobilenet_v3_large_320_fpn")
    assert convert_detector(state | {"args": options}, "a.pth")["build"]["name"] == NAME
    assert convert_detector({"model": shapes("resnet50_fpn")}, "_320_")["build"]["name"] == "resnet50_fpn"


def test_the_boxes_of_mask_rcnn():
    found = convert_detector(shapes("maskrcnn_resnet50_fpn_v2"))
    assert found["build"] == {"name": "resnet50_fpn_v2", "n_fg_class": 3}
    assert found["model"].keys() == shapes("resnet50_fpn_v2").keys()


def test_names_of_classes():
    coco = convert_detector(shapes(NAME, 91))
    names = resolve(coco, (), ())
    assert (len(names), names[0], names[11], names[89]) == (90, "person", "N/A", "toothbrush")
    own = tuple(f"kind {i}" for i in range(90))
    assert resolve(coco, own, ()) == own  # 91 outputs need not be COCO's
    assert resolve(convert_detector(shapes(NAME)), ("a", "b", "c"), ()) == ("a", "b", "c")


def test_training_needs_the_model_of_the_file():
    checkpoint = convert_detector(shapes("resnet50_fpn"))
    check_compatible("a.pth", checkpoint, ("a", "b"), {"name": "resnet50_fpn", "n_fg_class": 2}, reset_head=True)
    with pytest.raises(CheckpointError, match=r"a\.pth was trained with --model=resnet50_fpn, now it is vgg16: give"):
        check_compatible("a.pth", checkpoint, ("a", "b", "c"), {"name": "vgg16", "n_fg_class": 3})
    backbone = convert_backbone(shapes("resnet50_fpn"))  # --pretrained=FILE
    assert backbone["model"].keys() == shapes("resnet50_fpn").keys()
    assert backbone["layout"] == "torchvision's detector"


# Files in use


@torch.no_grad()
def test_a_file_gives_the_detections_of_torchvision(home):
    theirs = build(n_class=3)
    net = model.restore(load_checkpoint("own.pth"))
    img = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    bbox, label, score = (values[0] for values in net.predict([img]))
    (found,) = theirs([torch.from_numpy(img).permute(2, 0, 1) / 255])
    assert len(bbox) == len(found["boxes"]) > 5
    np.testing.assert_allclose(np.sort(score), np.sort(found["scores"]), rtol=1e-4)
    np.testing.assert_allclose(bbox.sum(0), found["boxes"].sum(0)[[1, 0, 3, 2]], rtol=1e-4)
    assert set(label) <= set((found["labels"] - 1).tolist())


def test_a_file_is_used_with_names_for_its_classes(home, capsys):
    predict.main(
        PredictConfig(load_path="own.pth", classes="bar,box", score_thresh=0.1, limit=1, out="own", **CPU),
        "voc/JPEGImages",
    )
    assert {row["name"] for row in json.loads((home / "own/predictions.json").read_text())} <= {"bar", "box"}
    assert "own.pth: a detector of torchvision, mobilenet_v3_large_320_fpn, 2 classes, pre" in capsys.readouterr().out
    data = {"data": "voc", "voc_data_dir": "voc", "split": "val", "limit": 1, "json": "own.json"}
    evaluation.main(EvalConfig(load_path="own.pth", classes="bar,box", **data, **CPU))
    assert list(json.loads((home / "own.json").read_text())["ap"]) == ["bar", "box"]


def test_a_published_detector_is_fetched_by_its_name(home, capsys):
    image = "voc/JPEGImages/val00000.png"
    predict.main(PredictConfig(load_path=NAME, score_thresh=0.05, max_detections=1000, out="found", **CPU), image)
    assert f"{NAME}: torchvision's detector, trained on COCO (a download of 74 MB, once)\n" in capsys.readouterr().out
    rows = json.loads((home / "found/predictions.json").read_text())
    names = {row["label"]: row["name"] for row in rows}
    assert names[0] == "person"
    assert 11 not in names


def test_without_a_network_the_file_to_fetch_is_named(tmp_path, monkeypatch):
    def get_state_dict(self, **options):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models.WeightsEnum.get_state_dict", get_state_dict)
    assert PredictConfig().load_path == "resnet50_fpn"
    message = r"^\S*/fasterrcnn_resnet50_fpn_coco-258fb6c6\.pth cannot be fetched \(no network\): .* --load-path=FILE$"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint("resnet50_fpn")
    with pytest.raises(CheckpointError, match="resnet50 is not a file"):
        open_checkpoint("resnet50")
    monkeypatch.chdir(tmp_path)
    torch.save({"model": build(n_class=3).state_dict()}, "resnet50_fpn")  # a file comes first
    assert open_checkpoint("resnet50_fpn", hint=NAME)["build"] == {"name": NAME, "n_fg_class": 2}


# Training


def options(**texts):
    """The options of a step at rate 0 on tiny images with two classes."""
    unknown = ("dropout", "rpn_min_size", "anchor_scales", "head_width", "pretrained")
    common = {name: text for name, text in fixtures.OPTIONS.items() if name not in unknown}
    common |= {"model": NAME, "max_steps": "1", "lr": "0", "env": "fine"}
    return parse_options(TrainConfig, common | texts, None, model.defaults)


@pytest.mark.parametrize(
    ("given", "same_head"),
    [
        ({"load_path": "plain.pth"}, True),
        ({"load_path": NAME, "reset_head": "True"}, False),
        ({"pretrained": "coco"}, False),
        ({"pretrained": f"hub/checkpoints/fasterrcnn_{NAME}-907ea3f9.pth"}, False),
    ],
)
def test_where_training_starts(home, given, same_head):
    net, _ = build_model(options(**given), ("bar", "box"))
    source = build(n_class=3 if given.get("load_path") == "plain.pth" else 91).state_dict()
    assert torch.equal(net.head.box_head.fc7.weight, source["roi_heads.box_head.fc7.weight"])
    assert torch.equal(net.rpn.score.weight, source["rpn.head.cls_logits.weight"])
    assert torch.equal(net.extractor.body["0"][0].weight, source["backbone.body.0.0.weight"])
    wanted = source["roi_heads.box_predictor.cls_score.weight"]
    assert net.head.score.weight.shape == (3, 1024)
    assert (wanted.shape == (3, 1024) and torch.equal(net.head.score.weight, wanted)) == same_head
    assert isinstance(net.extractor.body["0"][1], FrozenBatchNorm2d)


def test_a_training_from_a_file(home):
    train.main(options(load_path="own.pth", reset_head="True"))
    trained = load_checkpoint("runs/fine/last.pth")
    build = trained["build"]
    assert (build["name"], build["batch_norm"], build["trainable_layers"]) == (NAME, "frozen", 3)
    assert trained["class_names"] == ["bar", "box"]


def test_other_classes_need_a_new_head(home):
    with pytest.raises(
        CheckpointError, match=rf"^{NAME} has 90 classes, person, .*, the data have 2, bar, box: --reset-h"
    ):
        build_model(options(load_path=NAME), ("bar", "box"))
