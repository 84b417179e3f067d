"""The scripts as a user runs them, on a few tiny images, on the CPU: files, resuming, workers, refusals.

A process costs seconds, so one of each kind is run, two at a time, and several tests look at what it left.
"""
import concurrent.futures
import dataclasses
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval import main as eval_main
from model.utils.preprocess import TORCHVISION
from utils.config import EvalConfig, OptionError, TrainConfig

REPO = Path(__file__).parent.parent
OPTIONS = [
    "--pretrained=none", "--head-width=32", "--min-size=64", "--max-size=96", "--anchor-scales=1,2,4",
    "--rpn-min-size=2", "--n-train-pre-nms=200", "--n-train-post-nms=50", "--n-test-pre-nms=100",
    "--n-test-post-nms=20", "--visdom=off", "--device=cpu", "--epoch=2", "--plot-every=2", "--lr-decay-step=7",
    "--eval-split=held", "--dropout=0.5"]
SPLITS = {"trainval": ["e", "d", "c", "b", "none"], "held": ["a1", "a2"]}
COLORS = {"bar": (250, 40, 10), "box": (20, 60, 240)}
IDS = [image_id for ids in SPLITS.values() for image_id in ids]
RUN_FILES = ["best.pth", "config.json", "curves.png", "environment.json", "last.pth", "last.pth.1",
             "log.jsonl", "pictures"]


def script(cwd, name, *words):
    """Runs one of the scripts in `cwd`, with the words of a command line."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    program = REPO / name if name.endswith(".py") else name
    return subprocess.run([sys.executable, program, *words], cwd=cwd, env=env, capture_output=True, text=True,
                          timeout=300)


def write_voc(root):
    """A wide and a square object on each image of 64 x 96, none on "none"; those held back are 40 x 100."""
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    for split, ids in SPLITS.items():
        (root / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(ids))
    rng = np.random.default_rng(0)
    for image_id in IDS:
        img = rng.integers(90, 130, (40, 100, 3) if image_id.startswith("a") else (64, 96, 3), np.uint8)
        objects = ""
        for name, (height, width) in {} if image_id == "none" else {"bar": (9, 40), "box": (20, 22)}.items():
            y, x = (int(rng.integers(0, side - size)) for side, size in zip(img.shape, (height, width), strict=False))
            img[y:y + height, x:x + width] = COLORS[name]
            objects += (f"<object><name>{name}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
                        f"<xmax>{x + width}</xmax><ymax>{y + height}</ymax></bndbox></object>")
        (root / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>{objects}</annotation>")
        Image.fromarray(img).save(root / "JPEGImages" / f"{image_id}.png")
    return root


@pytest.fixture(scope="module")
def pool():
    pool = concurrent.futures.ThreadPoolExecutor(2)
    yield pool
    pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder in which everything runs, with a data set in voc/; removed at the end, checkpoints are large."""
    folder = tmp_path_factory.mktemp("cli")
    write_voc(folder / "voc")
    yield folder
    shutil.rmtree(folder)


def train(place, env, *words):
    """Trains in `place`, without an error."""
    done = script(place, "train.py", "train", f"--env={env}", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fresh(place, env, *words):
    return train(place, env, "--voc-data-dir=voc", *OPTIONS, *words)


def in_parts(place):
    """Trains for 4 of the 5 steps of the first epoch, and goes on from there."""
    fresh(place, "parts", "--max-steps=4")
    assert checkpoint(place / "runs/parts")["step"] == 4
    return train(place, "parts", "--resume", "--max-steps=10")


def over_another(place):
    """Trains in batches of two, in the folder of an earlier run."""
    folder = place / "runs/batches"
    folder.mkdir(parents=True)
    for name in ("config.json", "of an earlier run"):
        (folder / name).write_text("{}")
    return fresh(place, "batches", "--overwrite", "--batch-size=2", "--eval-every=0", "--dropout=0")


def as_a_team(place):
    """Trains in two processes, for two of the three steps of the first epoch, and goes on from there."""
    fresh = ["--env=team", "--voc-data-dir=voc", *OPTIONS, "--dropout=0", "--max-steps=2"]
    for words in (fresh, ["--env=team", "--resume", "--max-steps=6"]):
        done = script(place, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", REPO / "train.py",
                      "train", *words)
        assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def runs(place, pool):
    """Name of a run -> a future of what it prints."""
    return {"whole": pool.submit(fresh, place, "whole"), "parts": pool.submit(in_parts, place),
            "workers": pool.submit(fresh, place, "workers", "--num-workers=2"),
            "batches": pool.submit(over_another, place),
            "team": pool.submit(as_a_team, place),
            "deterministic": pool.submit(fresh, place, "deterministic", "--deterministic")}


@pytest.fixture(scope="module")
def whole(place, runs):
    """The folder of an undisturbed run of two epochs, and what it printed."""
    printed = runs["whole"].result()
    return place / "runs/whole", printed


def log(folder, *names):
    """The lines of a log.jsonl, or of each training line the values of some names."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [[line[name] for name in names] for line in lines if line["kind"] == "train"] if names else lines


def checkpoint(folder, name="last.pth"):
    return torch.load(folder / name, weights_only=True)


def assert_same(tree, other):
    """Both hold the same, tensors bit for bit."""
    if isinstance(tree, torch.Tensor):
        assert torch.equal(tree, other)
    elif isinstance(tree, dict):
        assert tree.keys() == other.keys()
        for key in tree:
            assert_same(tree[key], other[key])
    else:
        assert tree == other


# One run and what it leaves


def test_a_run_leaves_its_files_and_no_others(whole):
    folder, printed = whole
    assert sorted(path.name for path in folder.iterdir()) == RUN_FILES
    assert "5 images to train on, 2 to evaluate on, 2 classes: bar, box" in printed
    assert "python eval.py --load-path=runs/whole/last.pth" in printed
    assert sorted(path.name for path in folder.parents[1].iterdir()) == ["runs", "voc"]


def test_config_holds_every_option(whole):
    config = json.loads((whole[0] / "config.json").read_text())
    assert list(config) == [field.name for field in dataclasses.fields(TrainConfig)]
    assert (config["env"], config["min_size"], config["anchor_scales"], config["lr"]) == ("whole", 64, [1, 2, 4], 1e-3)
    assert config["voc_data_dir"] == "voc"
    assert config["visdom"] == "off"
    assert config["max_steps"] is None


def test_log_has_a_line_an_interval_and_one_an_evaluation(whole):
    lines = log(whole[0])
    assert [(line["kind"], line["step"], line["epoch"]) for line in lines] == [
        ("train", 2, 0), ("train", 4, 0), ("eval", 5, 0),
        ("train", 6, 1), ("train", 8, 1), ("train", 10, 1), ("eval", 10, 1)]
    losses = np.array(log(whole[0], "rpn_loc", "rpn_cls", "roi_loc", "roi_cls", "total"))
    assert np.isfinite(losses).all()
    assert (losses[:, [1, 3]] > 0).all()
    np.testing.assert_allclose(losses[:, :4].sum(1), losses[:, 4], rtol=1e-5)
    rates = np.array(log(whole[0], "rpn_recall_neg", "roi_acc_bg", "n_pos_anchor", "n_pos_roi", "n_proposal"))
    assert ((rates[:, :2] >= 0) & (rates[:, :2] <= 1)).all()
    assert (rates[:, 2:4] >= 0).all()
    assert ((rates[:, 4] > 0) & (rates[:, 4] <= 50)).all()  # --n-train-post-nms
    np.testing.assert_allclose(log(whole[0], "lr"), [[1e-3], [1e-3], [1e-3], [1e-4], [1e-4]])
    assert list(lines[-1]["ap"]) == ["bar", "box"]


def test_checkpoints_hold_what_is_documented(whole):
    folder, _ = whole
    last, best = checkpoint(folder), checkpoint(folder, "best.pth")
    weights = {"format", "model", "build", "class_names", "preprocessing", "config", "epoch", "step",
               "epoch_steps", "processes"}
    assert last.keys() == weights | {"optimizer", "rng"}
    assert best.keys() == weights | {"map"}
    assert (last["epoch"], last["step"], last["class_names"]) == (1, 10, ["bar", "box"])
    assert last["config"] == json.loads((folder / "config.json").read_text()) | {
        name: tuple(value) for name, value in last["config"].items() if isinstance(value, tuple)}
    evaluations = {line["step"]: line["map"] for line in log(folder) if line["kind"] == "eval"}
    assert best["map"] == max(evaluations.values())
    assert best["step"] == min(step for step, value in evaluations.items() if value == best["map"])
    assert len(last["optimizer"]["state"]) == len(last["model"])  # nothing is frozen
    assert last["build"] == best["build"] == {
        "name": "vgg16", "n_fg_class": 2, "head_width": 32, "dropout": 0.5, "min_size": 64, "max_size": 96,
        "anchor_scales": (1, 2, 4), "anchor_ratios": (0.5, 1, 2),
        "proposal": {"nms_thresh": 0.7, "min_size": 2, "n_train_pre_nms": 200, "n_train_post_nms": 50,
                     "n_test_pre_nms": 100, "n_test_post_nms": 20}}


def test_curves_are_a_picture(whole):
    with Image.open(whole[0] / "curves.png") as img:
        assert len(np.unique(np.array(img.convert("RGB")).reshape(-1, 3), axis=0)) > 20


def test_pictures_show_the_same_images_after_each_evaluation(whole):
    pictures = sorted((whole[0] / "pictures").iterdir())
    assert [path.name for path in pictures] == ["000005.png", "000010.png"]
    sheets = [np.array(Image.open(path)) for path in pictures]
    assert sheets[0].shape == sheets[1].shape
    assert sheets[0].shape[0] > 40  # one row with the two images of 40 x 100, each twice, below titles
    assert sheets[0].shape[1] > 400
    np.testing.assert_array_equal(sheets[0][:, :100], sheets[1][:, :100])  # what is there


# The same run, otherwise


@pytest.fixture(scope="module")
def parts(place, runs):
    """The folder of the same run, interrupted in the middle of its first epoch, and resumed."""
    assert "steps 4 to 10" in runs["parts"].result()
    return place / "runs/parts"


def test_a_resumed_run_ends_where_an_undisturbed_one_does(whole, parts):
    one, other = checkpoint(whole[0]), checkpoint(parts)
    for name in ("model", "optimizer", "rng", "build", "epoch", "step"):
        assert_same(one[name], other[name])
    names = ("step", "epoch", "rpn_loc", "rpn_cls", "roi_loc", "roi_cls", "total", "lr", "rpn_recall_pos",
             "rpn_recall_neg", "roi_acc_fg", "roi_acc_bg", "n_proposal", "n_pos_anchor", "n_pos_roi")
    assert log(whole[0], *names) == log(parts, *names)
    assert sorted(path.name for path in parts.iterdir()) == RUN_FILES


def test_a_resumed_run_keeps_its_options(whole, parts):
    one, other = (json.loads((folder / "config.json").read_text()) for folder in (whole[0], parts))
    assert {name for name in one if one[name] != other[name]} == {"env", "resume", "max_steps"}


def test_workers_change_nothing(place, runs, whole):
    runs["workers"].result()
    one, other = checkpoint(whole[0]), checkpoint(place / "runs/workers")
    for name in ("model", "optimizer"):
        assert_same(one[name], other[name])
    assert one["config"]["num_workers"] is None  # 0 on a CPU


def test_what_a_run_was_made_with(whole, parts):
    (start,), starts = (json.loads((folder / "environment.json").read_text()) for folder in (whole[0], parts))
    assert (start["step"], start["seed"]) == (0, 0)
    assert start["torch"] == importlib.metadata.version("torch")
    assert start.keys() >= {"commit", "modified", "python", "torchvision", "numpy", "cuda", "device", "threads"}
    assert [start["step"] for start in starts] == [0, 4]


def test_deterministic_changes_nothing_on_a_cpu(place, runs, whole):
    runs["deterministic"].result()
    assert_same(checkpoint(whole[0])["model"], checkpoint(place / "runs/deterministic")["model"])


def test_batches_and_overwriting(place, runs, whole):
    runs["batches"].result()
    folder = place / "runs/batches"
    assert sorted(path.name for path in folder.iterdir()) == RUN_FILES
    assert checkpoint(folder)["step"] == 6  # 2 + 2 + 1 images an epoch
    assert [(line["kind"], line["step"]) for line in log(folder)] == [
        ("train", 2), ("train", 4), ("train", 6), ("eval", 6)]
    weight = "extractor.28.weight"
    assert not torch.equal(checkpoint(folder)["model"][weight], checkpoint(whole[0])["model"][weight])


def test_two_processes_take_the_steps_of_one_with_batches_of_two(place, runs, whole):
    printed = runs["team"].result()
    runs["batches"].result()
    one, team = checkpoint(place / "runs/batches"), checkpoint(place / "runs/team")
    for name in ("model", "optimizer", "step"):
        assert_same(one[name], team[name])
    assert "steps 2 to 6 on cpu" in printed
    assert "2 processes" in printed
    assert printed.count("written to runs/team") == 1  # the second process is silent
    assert sorted(path.name for path in (place / "runs/team").iterdir()) == RUN_FILES
    (alone,), both = ([line for line in log(place / "runs" / name) if line["kind"] == "eval"]
                      for name in ("batches", "team"))
    assert both[-1]["map"] == alone["map"]
    assert both[-1]["ap"] == alone["ap"]
    names = ("step", "total", "rpn_recall_neg", "roi_acc_bg", "n_proposal", "n_pos_anchor", "n_pos_roi")
    assert log(place / "runs/batches", *names)[:1] == log(place / "runs/team", *names)[:1]
    starts = json.loads((place / "runs/team/environment.json").read_text())
    assert [(start["step"], start["processes"]) for start in starts] == [(0, 2), (2, 2)]


def test_a_team_is_resumed_by_as_many(place, runs):
    runs["team"].result()
    done = script(place, "train.py", "train", "--env=team", "--resume", "--max-steps=8")
    assert done.returncode == 1
    assert ("was written with {'epoch_steps': 3, 'processes': 2}, now it would be {'epoch_steps': 5, 'processes': 1}"
            in done.stderr)


# From the checkpoint alone


@pytest.fixture(scope="module")
def detected(place, whole, pool, tmp_path_factory):
    """A folder with copies of the last checkpoint and of voc/, and what eval.py and predict.py wrote there."""
    folder = tmp_path_factory.mktemp("alone")
    shutil.copy(whole[0] / "last.pth", folder / "net.pth")
    shutil.copytree(place / "voc", folder / "voc")
    options = ["--load-path=net.pth", "--device=cpu", "--score-thresh=0.02"]
    commands = [("eval.py", *options, "--json=json/eval.json"),
                ("predict.py", "voc/JPEGImages", *options, "--precision=fp32", "--limit=2", "--out=new/out"),
                ("eval.py", *options, "--json=json/coco.json", "--metric=coco", "--limit=1"),
                ("eval.py", *options, "--json=json/recall.json", "--proposals")]
    done = list(pool.map(lambda words: script(folder, *words), commands))
    for one in done:
        assert one.returncode == 0, one.stderr
    yield folder, *(one.stdout for one in done[:2])
    shutil.rmtree(folder)


def test_eval_needs_only_the_checkpoint(detected):
    folder, printed, _ = detected
    result = json.loads((folder / "json/eval.json").read_text())
    assert result.pop("map") == pytest.approx(np.mean(list(result["ap"].values())))
    assert list(result.pop("ap")) == ["bar", "box"]
    assert sum(result.pop("n_detection").values()) > 0
    assert "difficult objects count neither way" in result.pop("meaning")
    assert result.pop("preprocessing") == [list(value) if isinstance(value, tuple) else value for value in TORCHVISION]
    assert result == {
        "checkpoint": "net.pth", "step": 10, "data": "voc", "split": "held", "metric": "voc07", "precision": "fp32",
        "n_image": 2,
        "score_thresh": 0.02, "nms_thresh": 0.3, "max_detections": None, "n_object": {"bar": 2, "box": 2},
        "summary": {}}
    for words in ("net.pth: a checkpoint of this library, step 10\n", "voc, 2 images of split held\n",
                  "fp32, scores above 0.02, NMS 0.3, all of an image\n",
                  "voc07: VOC2007's average precision (11 points) at IoU 0.5, difficult objects count neither way\n"):
        assert words in printed
    assert re.search(r"class +AP +objects +detections\nbar .*\nbox .*\nmean ", printed)
    assert printed.endswith("written to json/eval.json\nnext: python predict.py IMAGE_OR_FOLDER --load-path=net.pth\n")


@pytest.mark.parametrize("options", [{"json": "net.pth/a.json"}, {"plot": "net.pth/a.png", "proposals": True}])
def test_eval_looks_where_it_will_write_before_it_detects(detected, monkeypatch, capsys, options):
    monkeypatch.chdir(detected[0])
    with pytest.raises(OptionError, match=r"net\.pth/a\.\w+ cannot be written \("):
        eval_main(EvalConfig(load_path="net.pth", device="cpu", **options))
    assert "images of split" not in capsys.readouterr().out


def test_eval_by_cocos_metric(detected):
    result = json.loads((detected[0] / "json/coco.json").read_text())
    assert result["metric"] == "coco"
    assert result["n_object"] == {"bar": 1, "box": 1}
    assert result["map"] == result["summary"]["AP"] <= result["summary"]["AP50"] <= 1
    assert result["summary"]["AP_large"] is None  # all objects are small


def test_eval_of_proposals(detected):
    result = json.loads((detected[0] / "json/recall.json").read_text())
    assert (result["n_object"], result["counts"]) == (4, [50, 100, 300, 1000, 2000])
    recall = np.array(result["recall"])
    assert recall.shape == (5, 10)
    assert ((recall >= 0) & (recall <= 1)).all()
    assert (np.diff(recall, axis=0) >= 0).all()
    assert (np.diff(recall, axis=1) <= 0).all()
    with Image.open(detected[0] / "net.recall.png") as img:  # beside the checkpoint
        assert min(img.size) > 300


def test_predict_writes_a_picture_an_image(detected):
    folder, _, printed = detected
    out = folder / "new/out"
    assert sorted(path.name for path in out.iterdir()) == ["a1.png", "a2.png", "contact_sheet.png", "predictions.json"]
    assert "in 2 images" in printed
    for name in ("a1.png", "a2.png"):
        drawn, img = (np.array(Image.open(path / name)) for path in (out, folder / "voc/JPEGImages"))
        assert drawn.shape == img.shape == (40, 100, 3)
        assert (drawn != img).any()


def test_predictions_are_boxes_in_pixels_of_the_image(detected):
    folder, _, _ = detected
    rows = json.loads((folder / "new/out/predictions.json").read_text())
    assert {row["image"] for row in rows} == {"voc/JPEGImages/a1.png", "voc/JPEGImages/a2.png"}
    for row in rows:
        assert list(row) == ["image", "bbox", "label", "name", "score"]
        assert row["name"] == ["bar", "box"][row["label"]]
        assert 0.02 <= row["score"] <= 1
    y_min, x_min, y_max, x_max = np.array([row["bbox"] for row in rows]).T
    assert (y_min >= 0).all()
    assert (y_min < y_max).all()
    assert (y_max <= 40).all()
    assert (x_min >= 0).all()
    assert (x_min < x_max).all()
    assert 40 < x_max.max() <= 100  # y before x


def test_predict_and_eval_detect_the_same(detected):
    folder, _, _ = detected
    names = [row["name"] for row in json.loads((folder / "new/out/predictions.json").read_text())]
    found = json.loads((folder / "json/eval.json").read_text())["n_detection"]
    assert {name: names.count(name) for name in ("bar", "box")} == found


# Weights from elsewhere


@pytest.fixture(scope="module")
def elsewhere(place, whole, pool):
    """What is printed by a prediction with another program's file, and by a training that starts from ours."""
    names = {"rpn.conv.": "rpn.conv1.", "head.fc6.": "head.classifier.0.", "head.fc7.": "head.classifier.2."}
    state = checkpoint(whole[0])["model"]
    for ours, theirs in names.items():
        state = {key.replace(ours, theirs): value for key, value in state.items()}
    torch.save({"model": state, "config": {"caffe_pretrain": True}}, place / "simple.pth")
    options = ["--voc-data-dir=voc", *OPTIONS, "--max-steps=1"]
    commands = [("predict.py", "voc/JPEGImages/a1.png", "--load-path=simple.pth", "--classes=bar,box", "--out=simple"),
                ("train.py", "train", "--env=fine", *options, "--load-path=runs/whole/best.pth", "--reset-head",
                 "--classes=box,bar", "--seed=1"),
                ("train.py", "train", "--env=fault", *options, "--load-path=runs/whole/best.pth", "--classes=box,bar")]
    return list(pool.map(lambda words: script(place, *words), commands))


def test_another_programs_detector_predicts(place, elsewhere):
    assert elsewhere[0].returncode == 0, elsewhere[0].stderr
    assert elsewhere[0].stdout.startswith("simple.pth: a detector of simple-faster-rcnn-pytorch, 2 classes, "
                                          "preprocessing caffe-rgb-mean, as its file says\n")
    assert (place / "simple/a1.png").is_file()


def test_fine_tuning_for_other_classes(place, whole, elsewhere):
    assert elsewhere[1].returncode == 0, elsewhere[1].stderr
    tuned, start = checkpoint(place / "runs/fine"), checkpoint(whole[0], "best.pth")
    assert tuned["class_names"] == ["box", "bar"]
    far = {name: (tuned["model"][name] - value).abs().max() for name, value in start["model"].items()}
    assert far["head.score.weight"] > 1e-2 > far["head.fc7.weight"] > 0  # one drawn anew, one step of the other
    assert elsewhere[2].returncode == 1
    assert elsewhere[2].stderr.startswith("error: runs/whole/best.pth knows 2 classes (bar, box), the data have 2 (box")
    assert not (place / "runs/fault").exists()


# Refusals


REFUSALS = {
    "help": ("train.py", "train", "--help"),
    "unknown option": ("train.py", "train", "--env=no", "--lrr=1"),
    "no data": ("train.py", "train", "--env=no"),
    "no weights": ("train.py", "train", "--env=no", "--voc-data-dir=voc", *OPTIONS, "--pretrained=no.pth"),
    "earlier run": ("train.py", "train", "--env=old", "--voc-data-dir=voc", *OPTIONS),
    "no checkpoint": ("eval.py", "--load-path=voc/Annotations/a1.xml", "--device=cpu"),
}


@pytest.fixture(scope="module")
def refused(pool, tmp_path_factory):
    """What commands answer that are to end at once, by the keys of REFUSALS."""
    folder = tmp_path_factory.mktemp("refused")
    write_voc(folder / "voc")
    (folder / "runs/old").mkdir(parents=True)
    (folder / "runs/old/config.json").write_text("{}")
    done = pool.map(lambda words: script(folder, *words), REFUSALS.values())
    return dict(zip(REFUSALS, done, strict=True)) | {"folder": folder}


def test_help_lists_every_option(refused):
    done = refused["help"]
    assert (done.returncode, done.stderr) == (0, "")
    for field in dataclasses.fields(TrainConfig):
        assert f"--{field.name.replace('_', '-')}=" in done.stdout


@pytest.mark.parametrize(("kind", "words"), [
    ("unknown option", ["--lrr", "--lr?"]),
    ("no data", ["datasets/VOCdevkit/VOC2007", "--voc-data-dir", "--download", "--data=shapes"]),
    ("no weights", ["--pretrained=no.pth", "none"]),
    ("earlier run", ["runs/old", "--resume", "--overwrite", "--env"]),
    ("no checkpoint", ["voc/Annotations/a1.xml", "checkpoint"]),
])
def test_a_refusal_is_one_line(refused, kind, words):
    done = refused[kind]
    assert done.returncode == 1
    assert re.fullmatch(r"error: .+\n", done.stderr)
    for word in words:
        assert word in done.stderr


def test_a_refusal_leaves_everything_as_it_was(refused):
    folder = refused["folder"]
    assert sorted(path.name for path in folder.iterdir()) == ["runs", "voc"]
    assert [path.name for path in (folder / "runs").rglob("*")] == ["old", "config.json"]
    assert (folder / "runs/old/config.json").read_text() == "{}"
