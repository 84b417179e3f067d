"""Evaluation around the metric: what is detected on, what is counted, how it is shown."""
import json
import os

import numpy as np
import pytest
import torch

import eval as eval_script
from data.voc import CLASSES, Sample
from eval import (
    Evaluation,
    check_start,
    evaluate,
    evaluate_proposals,
    measure_proposals,
    names_for,
    open_checkpoint,
    predict_options,
    recall_table,
    table,
    worker_count,
)
from model import build, restore
from model.faster_rcnn import evaluating
from model.rpn import RPNOutput
from model.utils.preprocess import TORCHVISION
from model.utils.proposal_creator import ProposalCreator
from utils.checkpoint import CheckpointError
from utils.config import EvalConfig, OptionError, TrainConfig

GT = [  # bbox, label, difficult of three images
    ([[0, 0, 10, 20], [5, 30, 25, 40]], [0, 1], [False, False]),
    ([[2, 3, 12, 13], [20, 20, 30, 50]], [0, 0], [False, True]),
    ([], [], []),
]


class Dataset(list):
    classes = ("cat", "dog", "cow")

    def objects(self):
        return tuple([getattr(sample, name) for sample in self] for name in ("bbox", "label", "difficult"))


@pytest.fixture
def dataset():
    return Dataset(
        Sample(np.full((40, 60, 3), i, np.uint8), np.array(bbox, np.float32).reshape(-1, 4), np.array(label, int),
               np.array(difficult, bool), str(i)) for i, (bbox, label, difficult) in enumerate(GT))


class Oracle:
    """Finds the objects, and a false one in the last image, of which it is least sure."""

    loc_std = torch.zeros(4)

    def __init__(self):
        self.calls = []

    def predict(self, imgs, **options):
        (img,) = imgs
        bbox, label, _ = GT[img[0, 0, 0]]
        self.calls.append((int(img[0, 0, 0]), options, torch.is_autocast_enabled("cpu")))
        bbox, label = (bbox, label) if bbox else ([[0, 0, 9, 9]], [1])
        return [np.array(bbox, np.float32)], [np.array(label)], [np.full(len(bbox), 0.9 if len(bbox) > 1 else 0.1)]


def test_what_is_found_and_counted(dataset):
    model = Oracle()
    result = evaluate(model, dataset, score_thresh=0.2)
    assert result.ap == {"cat": 1, "dog": 1, "cow": None}
    assert result.map == 1
    assert result.n_object == {"cat": 2, "dog": 1, "cow": 0}  # without the difficult one
    assert result.n_detection == {"cat": 3, "dog": 2, "cow": 0}
    assert model.calls == [(i, {"score_thresh": 0.2}, False) for i in range(3)]


def test_the_first_so_many(dataset):
    model = Oracle()
    result = evaluate(model, dataset, limit=1)
    assert [index for index, *_ in model.calls] == [0]
    assert result.n_object == {"cat": 1, "dog": 1, "cow": 0}
    evaluate(model, dataset, limit=99)
    assert len(model.calls) == 1 + 3


def test_metric(dataset):
    class Half(Oracle):
        def predict(self, imgs, **options):
            return tuple([value[0][:1]] for value in super().predict(imgs, **options))

    # two images with two objects, one difficult: of "cat" all that counts is found, of "dog" nothing before a false one
    assert evaluate(Half(), dataset, "voc").ap == {"cat": 1, "dog": 0, "cow": None}
    dataset[1].difficult[1] = False
    assert evaluate(Half(), dataset, "voc").ap["cat"] == pytest.approx(2 / 3)
    assert evaluate(Half(), dataset, "voc07").ap["cat"] == pytest.approx(7 / 11)  # recalls 0 ... 0.6


def test_torchs_random_state_is_left_alone(dataset):
    before = torch.get_rng_state()
    evaluate(Oracle(), dataset)
    assert torch.equal(torch.get_rng_state(), before)


class Blind(Oracle):
    """Finds nothing."""

    def predict(self, imgs, **options):
        return [np.zeros((0, 4), np.float32)], [np.zeros(0, int)], [np.zeros(0, np.float32)]


@pytest.mark.parametrize("metric", ["voc07", "voc", "coco"])
def test_no_detection_is_nought_and_no_object_is_nothing(dataset, metric):
    result = evaluate(Blind(), dataset, metric)
    assert (result.map, result.ap) == (0, {"cat": 0, "dog": 0, "cow": None})
    assert set(result.n_detection.values()) == {0}
    result = evaluate(Oracle(), Dataset(dataset[2:]), metric)
    assert (result.map, result.ap) == (None, {"cat": None, "dog": None, "cow": None})
    json.dumps(result, allow_nan=False)


def test_coco(dataset):
    result = evaluate(Oracle(), dataset, "coco")
    assert [result.ap["cat"], result.ap["dog"], result.map, result.summary["AP"]] == pytest.approx([1] * 4)
    assert result.ap["cow"] is None
    assert result.summary["AP_large"] is None
    assert len(result.summary) == 12
    shifted = evaluate(Shifted(), dataset, "coco")
    assert shifted.ap["dog"] == pytest.approx(0.4)  # IoU 0.7 - a hair: at 0.5, 0.55, 0.6, 0.65
    assert shifted.summary["AP75"] < shifted.summary["AP50"]


class Shifted(Oracle):
    """Finds the objects with three tenths cut off, and a little more: an IoU of 0.69."""

    def predict(self, imgs, **options):
        (bbox,), label, score = super().predict(imgs)
        bbox[:, 2] -= 0.31 * (bbox[:, 2] - bbox[:, 0])
        return [bbox], label, score


# Proposals


class Proposer(torch.nn.Module):
    """Proposes at half size in y and a quarter in x: first a box far away, then the objects with their IoU halved."""

    loc_std = torch.zeros(4)

    def prepare(self, img):
        assert not self.training
        self.index = img[0, 0, 0]
        return torch.zeros(1, 3, 20, 15), 0.5

    def extractor(self, img):
        return img

    def rpn(self, feature, img_size, scale, train):
        assert not train
        assert scale == 0.5
        bbox = torch.tensor([[30.0, 0, 40, 10], *GT[self.index][0]])
        bbox[:, 3] = bbox[:, 1] + (bbox[:, 3] - bbox[:, 1]) / 2
        roi = bbox / torch.tensor([2.0, 4, 2, 4])
        return RPNOutput(None, None, None, roi, None)


def test_recall_of_proposals(dataset, monkeypatch):
    model = Proposer().train()
    recall = evaluate_proposals(model, dataset)
    assert model.training
    assert recall["n_object"] == 3
    np.testing.assert_array_equal(recall["recall"][:, 0], 1)  # an IoU of 1/2 each
    np.testing.assert_array_equal(recall["recall"][:, 1:], 0)
    assert evaluate_proposals(model, dataset, limit=1)["n_object"] == 2
    lines = recall_table(recall).splitlines()
    assert lines[0].split() == ["proposals", *(f"{t:.2f}" for t in np.arange(0.5, 1, 0.05)), "mean"]
    assert lines[1].split() == ["50", "1.0000", *["0.0000"] * 9, "0.1000"]
    assert [line.split()[0] for line in lines[1:]] == ["50", "100", "300", "1000", "2000"]
    assert "n/a" in recall_table(evaluate_proposals(model, Dataset(dataset[2:])))


def test_proposals_are_measured_with_as_many_as_in_training(dataset, monkeypatch, capsys):
    built = []

    def fake_restore(checkpoint):
        built.append(checkpoint["build"])
        Proposer.rpn.proposal_creator = ProposalCreator(**checkpoint["build"]["proposal"])
        return Proposer()

    monkeypatch.setattr(eval_script, "restore", fake_restore)
    checkpoint = {"build": {"name": "vgg16", "proposal": {"min_size": 3, "n_test_post_nms": 300}}}
    config = EvalConfig(load_path="a.pth")
    result = measure_proposals(config, checkpoint, dataset, torch.device("cpu"), None)
    assert built == [{"name": "vgg16", "proposal": {"min_size": 3, "n_test_pre_nms": 12000, "n_test_post_nms": 2000}}]
    assert checkpoint["build"]["proposal"] == {"min_size": 3, "n_test_post_nms": 300}
    assert result["recall"][0] == [1.0, *[0.0] * 9]
    assert (result["n_pre_nms"], result["nms_thresh"], result["min_size"]) == (12000, 0.7, 3)
    printed = capsys.readouterr().out
    assert "recall of 3 objects, the difficult ones left out" in printed
    assert "fp32, n_pre_nms 12000, nms_thresh 0.7, min_size 3\n" in printed
    result = measure_proposals(config, checkpoint, Dataset(dataset[2:]), torch.device("cpu"), None)
    json.dumps(result, allow_nan=False)


# Checkpoints


def simple_names(model):
    """The state of a model as simple-faster-rcnn-pytorch names it."""
    names = {"rpn.conv.": "rpn.conv1.", "head.fc6.": "head.classifier.0.", "head.fc7.": "head.classifier.2."}
    state = dict(model.state_dict())
    for ours, theirs in names.items():
        state = {key.replace(ours, theirs): value for key, value in state.items()}
    return state


def chainer_names(model):
    """The same as chainercv names it."""
    convs = iter([f"conv{b}_{i}" for b in range(1, 6) for i in range(1, 3 + (b > 2)) for _ in range(2)])
    state = {}
    for key, value in model.state_dict().items():
        key = f"extractor.{next(convs)}.conv.{key.split('.')[2]}" if key.startswith("extractor") else key
        key = key.replace("rpn.conv.", "rpn.conv1.").replace(".weight", ".W").replace(".bias", ".b")
        state[key.replace(".", "/")] = value.numpy()
    return state


@pytest.fixture
def model(tiny_model):
    """With the anchors and sizes of those programs, and few proposals."""
    model = build(n_fg_class=3, head_width=16)
    model.load_state_dict(tiny_model.state_dict())
    return model


def assert_sees_the_same(ours, theirs):
    img = np.random.default_rng(0).integers(0, 256, (30, 45, 3), np.uint8)
    with torch.no_grad(), evaluating(ours), evaluating(theirs):
        for model in (ours, theirs):
            model.min_size, model.max_size = 96, 160  # 600 x 900 would take long
        outputs = [model(*model.prepare(img)) for model in (ours, theirs)]
    assert len(outputs[0].roi_score) > 10
    torch.testing.assert_close(outputs[1].roi_score, outputs[0].roi_score)
    torch.testing.assert_close(outputs[1].roi_cls_loc, outputs[0].roi_cls_loc)


def test_simple_faster_rcnn_pytorch(tmp_path, model, capsys):
    path = tmp_path / "simple.pth"
    torch.save({"model": simple_names(model)}, path)
    theirs = restore(open_checkpoint(path))
    assert theirs.preprocessing == TORCHVISION
    assert (theirs.min_size, theirs.max_size) == (600, 1000)
    assert_sees_the_same(model, theirs)
    assert capsys.readouterr().out == (
        f"{path}: a detector of simple-faster-rcnn-pytorch, 3 classes, preprocessing torchvision, for want of better: "
        "--preprocess=caffe-rgb-mean is the other\n")
    theirs = restore(open_checkpoint(path, "caffe-rgb-mean"))
    assert theirs.preprocessing == ((102.9801, 115.9465, 122.7717), (1, 1, 1), 255, "BGR")  # B less R's mean
    assert "preprocessing caffe-rgb-mean, as --preprocess says" in capsys.readouterr().out


def test_chainercv(tmp_path, model, capsys):
    path = tmp_path / "chainercv.npz"
    np.savez(path, **chainer_names(model))
    theirs = restore(open_checkpoint(path))
    assert all(layer.ceil_mode for layer in theirs.extractor if isinstance(layer, torch.nn.MaxPool2d))
    assert theirs.extractor(torch.zeros(1, 3, 33, 48)).shape[2:] == (3, 3)  # 33, 17, 9, 5, 3
    assert model.extractor(torch.zeros(1, 3, 33, 48)).shape[2:] == (2, 3)
    assert theirs.preprocessing == ((122.7717, 115.9465, 102.9801), (1, 1, 1), 255, "RGB")
    model.preprocessing = theirs.preprocessing
    assert_sees_the_same(model, theirs)
    out = capsys.readouterr().out
    assert out == f"{path}: a detector of chainercv, 3 classes, preprocessing chainercv, as its layout says\n"


def test_classes_of_a_checkpoint_without_names(capsys):
    checkpoint = {"class_names": [], "build": {"n_fg_class": 20}}
    assert names_for(checkpoint, ()) == CLASSES
    checkpoint["build"]["n_fg_class"] = 2
    assert names_for(checkpoint, ("ant", "bee")) == ("ant", "bee")
    with pytest.raises(OptionError, match="knows 2 classes, but there are 0 names: name them with --classes=a,b,c"):
        names_for(checkpoint, ())
    checkpoint["build"]["head_width"] = 4096
    config = TrainConfig(load_path="a.pth")
    check_start(checkpoint, ("ant", "bee"), config)
    assert capsys.readouterr().out == (
        "note: the file does not name its classes; they are taken for ant, bee, in this order\n")
    with pytest.raises(CheckpointError, match=r"a\.pth knows 2 classes, the data have 1 \(ant\): --reset-head"):
        check_start(checkpoint, ("ant",), config)
    checkpoint["build"]["ceil_mode"] = True
    check_start(checkpoint, ("ant",), TrainConfig(load_path="a.pth", reset_head=True))
    assert capsys.readouterr().out == (
        "note: these weights were trained with poolings that round sizes up, here they round down\n")


def test_names(tmp_path):
    checkpoint = {"class_names": ["cat", "dog"], "build": {"n_fg_class": 2}}
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    assert names_for(checkpoint, ()) == ("cat", "dog")
    assert names_for(checkpoint, ("cat", "dog")) == ("cat", "dog")
    for other in (("dog", "cat"), ("cat",), ("cow", "hen")):
        with pytest.raises(OptionError, match=f"the checkpoint knows cat, dog: leave out --classes={','.join(other)},"):
            names_for(checkpoint, other)
    checkpoint["class_names"] = []
    assert names_for(checkpoint, (str(tmp_path / "names.txt"),)) == ("ant", "bee")
    with pytest.raises(OptionError, match="knows 2 classes, but there are 1 names: cow: name them with --classes"):
        names_for(checkpoint, ("cow",))


def test_autocast(dataset):
    model = Oracle()
    evaluate(model, dataset, dtype=torch.bfloat16)
    assert all(autocast for *_, autocast in model.calls)


def test_table():
    evaluation = Evaluation(0.125, {"cat": 0.25, "dining table": None, "dog": 0.0},
                            {"cat": 12, "dining table": 0, "dog": 3}, {"cat": 345, "dining table": 6, "dog": 0}, {})
    lines = [
        "class             AP  objects  detections",
        "cat           0.2500       12         345",
        "dining table     n/a        0           6",
        "dog           0.0000        3           0",
        "mean          0.1250       15         351"]
    assert table(evaluation).splitlines() == lines
    evaluation = evaluation._replace(map=None, summary={"AP": 0.5, "AR_small": None})
    assert table(evaluation).splitlines() == [
        *lines[:-1], "mean             n/a       15         351", "AP         0.5000", "AR_small      n/a"]


def test_options_of_predict():
    config = TrainConfig(score_thresh=0.1, nms_thresh=0.4, max_detections=7)
    assert predict_options(config) == {"score_thresh": 0.1, "nms_thresh": 0.4, "max_detections": 7}


def test_workers(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [worker_count(None, cpu), worker_count(None, cuda)] == [0, 3]
    assert [worker_count(n, device) for n in (0, 2) for device in (cpu, cuda)] == [0, 0, 2, 2]
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert worker_count(None, cuda) == 4
