"""The scripts by their command lines, in this process with a narrow VGG16; tests/test_readme.py starts processes."""

import json
import re
import runpy
import shutil
import signal
import sys
from pathlib import Path

import fixtures
import numpy as np
import pytest
import torch
from PIL import Image

from trainer import FasterRCNNTrainer
from utils.checkpoint import load_checkpoint
from utils.config import TrainConfig, dashed

REPO = Path(__file__).parent.parent
OPTIONS = [f"--{dashed(name)}={value}" for name, value in fixtures.OPTIONS.items()]
DETECT = ["--device=cpu", "--precision=fp32", "--score-thresh=0.02"]


@pytest.fixture
def script(monkeypatch, capsys):
    """A function that runs a script and returns what it prints, or the code or message with which it exits."""

    def run(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *words])
        capsys.readouterr()
        try:
            runpy.run_path(str(REPO / name), run_name="__main__")
        except SystemExit as caught:  # Python prints the message and exits with code 1
            return caught.code
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def trained(place):
    """The path of a checkpoint, in a folder that has nothing else of its run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", "train", "--env=a", *OPTIONS, "--max-steps=3"])
        runpy.run_path(str(REPO / "train.py"), run_name="__main__")
    shutil.move("runs/a/last.pth", "net.pth")
    shutil.rmtree("runs")
    return "net.pth"


def test_eval_needs_only_the_checkpoint(trained, script):
    printed = script("eval.py", f"--load-path={trained}", *DETECT, "--json=eval.json")
    result = json.loads(Path("eval.json").read_text())
    assert result["map"] == pytest.approx(np.mean(list(result["ap"].values())))
    assert list(result["ap"]) == ["bar", "box"]
    assert sum(result["n_detection"].values()) > 0
    some = {"checkpoint": "net.pth", "step": 3, "data": "voc", "split": "val", "metric": "voc07", "precision": "fp32"}
    some |= {"score_thresh": 0.02, "nms_thresh": 0.3, "max_detections": None, "n_object": {"bar": 2, "box": 2}}
    assert some.items() <= result.items()
    for line in (
        "net.pth: a checkpoint of this library, step 3",
        "voc, split val: 3 images",
        "fp32, scores above 0.02, NMS 0.3, all detections per image",
        "written to eval.json",
    ):
        assert f"{line}\n" in printed


def test_eval_by_cocos_metric(trained, script):
    script("eval.py", f"--load-path={trained}", *DETECT, "--json=coco.json", "--metric=coco", "--limit=1")
    result = json.loads(Path("coco.json").read_text())
    assert (result["metric"], result["n_object"]) == ("coco", {"bar": 1, "box": 1})
    assert result["map"] == result["summary"]["AP"] <= result["summary"]["AP50"] <= 1
    assert result["summary"]["AP_large"] is None  # all objects are small


def test_eval_of_proposals(trained, script):
    script("eval.py", f"--load-path={trained}", *DETECT, "--json=recall.json", "--proposals")
    result = json.loads(Path("recall.json").read_text())
    recall = np.array(result["recall"])
    assert (result["n_object"], recall.shape) == (4, (5, 10))
    assert recall.max() > 0
    assert ((recall >= 0) & (recall <= 1)).all()
    assert (np.diff(recall, axis=0) >= 0).all()
    assert (np.diff(recall, axis=1) <= 0).all()
    assert min(Image.open("net.recall.png").size) > 300  # beside the checkpoint


def test_predict_writes_what_eval_detects(trained, script):
    printed = script("predict.py", "voc/JPEGImages/val*", f"--load-path={trained}", *DETECT, "--out=new/out")
    names = [f"val{i:05d}" for i in range(3)]
    files = [*(f"{name}.png" for name in names), "contact_sheet.png", "predictions.json"]
    assert sorted(path.name for path in Path("new/out").iterdir()) == sorted(files)
    assert " in 3 images, written to new/out" in printed
    rows = json.loads(Path("new/out/predictions.json").read_text())
    assert {row["image"] for row in rows} == {f"voc/JPEGImages/{name}.png" for name in names}
    sizes = dict(zip(names, fixtures.SIZES, strict=False))
    for row in rows:
        assert list(row) == ["image", "bbox", "label", "name", "score"]
        assert row["name"] == ["bar", "box"][row["label"]]
        assert 0.02 <= row["score"] <= 1
        y_min, x_min, y_max, x_max = row["bbox"]
        height, width = sizes[Path(row["image"]).stem]
        assert 0 <= y_min < y_max <= height
        assert 0 <= x_min < x_max <= width
    for name in names:
        drawn, img = (np.array(Image.open(f"{folder}/{name}.png")) for folder in ("new/out", "voc/JPEGImages"))
        assert drawn.shape == img.shape
        assert (drawn != img).any()
    script("eval.py", f"--load-path={trained}", *DETECT, "--json=eval.json")
    found = [row["name"] for row in rows]
    assert json.loads(Path("eval.json").read_text())["n_detection"] == {key: found.count(key) for key in ("bar", "box")}


# Checkpoints from elsewhere


def test_the_detector_of_another_program(trained, script):
    state = torch.load(trained, weights_only=True)["model"]
    for ours, theirs in (("rpn.conv.", "rpn.conv1."), ("fc6.", "classifier.0."), ("fc7.", "classifier.2.")):
        state = {name.replace(ours, theirs): value for name, value in state.items()}
    state["rpn.score.weight"], state["rpn.loc.weight"] = torch.zeros(18, 512, 1, 1), torch.zeros(36, 512, 1, 1)
    state["rpn.score.bias"], state["rpn.loc.bias"] = torch.zeros(18), torch.zeros(36)
    torch.save({"model": state, "config": {"caffe_pretrain": True}}, "simple.pth")
    image, weights = "voc/JPEGImages/val00000.png", "--load-path=simple.pth"
    printed = script("predict.py", image, weights, *DETECT, "--classes=bar,box", "--out=simple")
    what = "simple.pth: a detector of simple-faster-rcnn-pytorch, 2 classes, preprocessing caffe-rgb-mean, as its file "
    assert printed.startswith(what)
    assert Path("simple/val00000.png").is_file()
    assert "has 2 classes, but there are 0 names: pass --classes" in script("predict.py", image, weights)


def test_fine_tuning_for_other_classes(trained, script):
    words = ["train.py", "train", "--env=fine", *OPTIONS, f"--load-path={trained}", "--classes=box,bar"]
    text = script(*words)
    assert text.startswith("error: net.pth has 2 classes, bar, box, the data have 2, box, bar: --classes=bar,box keeps")
    assert not Path("runs/fine").exists()
    script(*words, "--reset-head", "--max-steps=1", "--seed=1")
    tuned, start = load_checkpoint("runs/fine/last.pth"), load_checkpoint(trained)
    assert tuned["class_names"] == ["box", "bar"]
    far = {name: (tuned["model"][name] - value).abs().max() for name, value in start["model"].items()}
    assert far["head.score.weight"] > 1e-2 > far["head.fc7.weight"] > 0  # new, and one step away


# Ends


def test_ctrl_c(place, script, monkeypatch):
    before, real = signal.getsignal(signal.SIGINT), FasterRCNNTrainer.train_step

    def train_step(*args):
        signal.raise_signal(signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(FasterRCNNTrainer, "train_step", train_step)
    assert script("train.py", "train", "--env=stopped", *OPTIONS) == 130
    assert load_checkpoint("runs/stopped/last.pth")["step"] == 1
    assert signal.getsignal(signal.SIGINT) == before
    monkeypatch.setattr("training.evaluate", lambda *args, **options: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(FasterRCNNTrainer, "train_step", real)
    assert script("train.py", "train", "--env=stopped", "--resume", "--max-steps=2") == 130  # in the evaluation
    assert load_checkpoint("runs/stopped/last.pth")["step"] == 2


def test_help_lists_every_option(script):
    printed = script("train.py", "train", "--help")
    for name in TrainConfig.model_fields:
        assert f"  --{dashed(name)}=" in printed
    assert "  --lr=0.001\n" in printed  # VGG16's own


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("train.py", ["--lrr=1"], "there is no option --lrr: did you mean --lr (learning rate)? --help"),
        ("train.py", ["--", "--env=b"], "delete --: what follows it would be ignored"),
        ("train.py", ["x"], "'x' is not an option: write --name=value"),
        ("train.py", ["--data=voc"], "datasets/VOCdevkit/VOC2007 .*--voc-data-dir.*--download.*--data=shapes"),
        ("train.py", ["--data=coc"], "--data=coc: data/coc_dataset.py does not exist; choose one of coco, .*, voc$"),
        (
            "train.py",
            ["--model=vgg61"],
            "there is no backbone 'vgg61' (--model): choose one of resnet50, .*resnet50_fpn, .*vgg16",
        ),
        ("train.py", ["--env=b", "--resume"], "--resume: runs/b does not exist, see --env; runs that are there: "),
        ("eval.py", ["--load-path=voc/Annotations/val00000.xml"], "val00000.xml .* is damaged (copy it again) or not"),
        ("eval.py", ["--load-path=net.pth", "--data=coc"], "--data=coc: data/coc_dataset.py does not exist"),
        (
            "predict.py",
            ["--load-path=net.pth"],
            "name images, directories or patterns, or else a split of the data set",
        ),
    ],
)
def test_a_refusal_is_one_sentence_and_writes_nothing(trained, script, name, words, message):
    before = sorted(Path().rglob("*"))
    text = script(name, *["train"] * (name == "train.py"), *words)
    assert re.match("error: .*" + re.sub(r"([().?])(?!\*)", r"\\\1", message).replace(r" \.*", " .*"), text), text
    assert "\n" not in text
    assert sorted(Path().rglob("*")) == before


def test_an_option_that_the_backbone_lacks_is_refused(script, place, monkeypatch):
    import model

    (place / "backbones").mkdir()
    (place / "backbones/plain.py").write_text("TRAINING = {'lr': 1e-3}\ndef build(n_fg_class, head_width=8): pass\n")
    monkeypatch.setattr(model, "__path__", [*model.__path__, str(place / "backbones")])
    text = script("train.py", "train", "--model=plain", "--dropout=0.5")
    assert text == "error: --dropout: --model=plain has no such option"
    sys.modules.pop("model.plain")
