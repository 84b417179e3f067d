"""train.py: its small decisions one by one, then whole runs of a narrow network in this process and in forks of it."""

import functools
import itertools
import json
import os
import re
import shutil
import signal
import socket
from pathlib import Path
from types import SimpleNamespace

import fixtures
import numpy as np
import pytest
import stress_resume
import torch
from coco_files import write_coco
from stress_resume import differences, log, same, start, wait

import model
import training
from data import Sample
from data.validate import DataError
from data.voc_dataset import read_splits
from model.utils.preprocess import CAFFE, TORCHVISION, TORCHVISION_CAFFE
from trainer import FasterRCNNTrainer, Losses, Stats
from utils.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from utils.command import parse_options
from utils.config import OptionError, TrainConfig


def make_config(**options):
    """The options of a run of VGG16, resolved."""
    return parse_options(TrainConfig, {"device": "cpu"} | options, defaults=model.defaults)


# Learning rate


@pytest.mark.parametrize(
    ("options", "at", "factors"),
    [
        ({}, [(0, 0), (10**6, 9), (0, 10), (0, 13)], [1, 1, 0.1, 0.1]),  # the paper's: after epoch 10 of 14
        ({"lr_decay": "0.5", "lr_decay_epoch": "3,1"}, [(0, 0), (0, 1), (0, 2), (0, 3)], [1, 0.5, 0.5, 0.25]),
        ({"lr_decay_epoch": "()"}, [(10**6, 99)], [1]),
        ({"lr_decay_step": "900,1000"}, [(899, 50), (900, 0), (999, 0), (1000, 0)], [1, 0.1, 0.1, 0.01]),
        ({"lr_warmup_steps": "4"}, [(0, 0), (1, 0), (3, 0), (4, 0), (9, 10)], [0.25, 0.5, 1, 1, 0.1]),
        ({"lr_warmup_steps": "1000"}, [(0, 0), (49, 0), (99, 0), (100, 1)], [0.01, 0.5, 1, 1]),  # epochs of 100 steps
    ],
)
def test_learning_rate(options, at, factors):
    config = make_config(lr="3e-3", **options)
    assert [training.learning_rate(config, *pair, 100) / 3e-3 for pair in at] == pytest.approx(factors)


# Order of the images


@pytest.mark.parametrize(
    ("n_image", "batch_size", "processes", "sizes"),
    [(5, 1, 1, [1] * 5), (5, 2, 1, [2, 2, 1]), (2, 4, 1, [2]), (7, 1, 3, [3, 3, 1]), (8, 2, 2, [4, 4])],
)
def test_every_image_once_per_epoch(monkeypatch, n_image, batch_size, processes, sizes):
    monkeypatch.setattr("utils.distributed.world_size", lambda: processes)
    batches = training.epoch_batches(make_config(batch_size=str(batch_size)), n_image, 0)
    assert [len(batch) for batch in batches] == sizes
    assert sorted(itertools.chain(*batches)) == list(range(n_image))


def test_order_depends_on_seed_and_epoch_alone():
    def order(epoch, **options):
        return [*itertools.chain(*training.epoch_batches(make_config(**options), 50, epoch))]

    first = order(4, seed="3")
    torch.manual_seed(1)
    np.random.seed(1)
    assert order(4, seed="3") == order(4, seed="3", batch_size="7") == first
    assert len({tuple(other) for other in (first, order(5, seed="3"), order(4, seed="4"), range(50))}) == 4


# One epoch


class Recorder:
    """Stands in for trainer and logger: notes what they receive; the losses are the number of the step."""

    model = SimpleNamespace(device=torch.device("cpu"))

    def __init__(self, stop_at=None):
        self.optimizer = SimpleNamespace(param_groups=[{"lr_mult": 2}])
        self.steps, self.lines, self.stop, self.stop_at = [], [], [], stop_at

    def train_step(self, samples, n_sample):
        assert n_sample == len(samples)
        self.steps.append([(int(sample.id), sample.label.item(), sample.rng.random()) for sample in samples])
        self.rates = [*getattr(self, "rates", []), self.optimizer.param_groups[0]["lr"]]
        if len(self.steps) == self.stop_at:
            self.stop.append(signal.SIGINT)
        one = torch.ones((), dtype=torch.int64)
        stats = Stats(*[one * n_sample] * len(Stats._fields))
        stats = stats._replace(n_same_score=one * n_sample if len(self.steps) > 1 else one * 0)
        return Losses(*torch.full((5,), float(len(self.steps))), stats)

    def train(self, step, epoch, figures):
        self.lines.append((step, epoch, figures["total"], figures["lr"]))
        assert figures["images_per_second"] > 0


def run_epoch(config, epoch, step, batches, stop_at=None):
    """What `Recorder` notes of some steps of an epoch of five images, whose labels are their indices."""
    img, bbox = np.zeros((2, 3, 3), np.uint8), np.zeros((1, 4), np.float32)
    dataset = [Sample(img, bbox, np.array([i]), np.zeros(1, bool), str(i)) for i in range(5)]
    seen = Recorder(stop_at)
    seen.reached = training.train_one_epoch(config, seen, dataset, batches, epoch, step, seen, seen.stop)
    return seen


@pytest.mark.parametrize("num_workers", ["0", "2"])
def test_one_epoch(num_workers, capsys):
    options = {"seed": "7", "batch_size": "2", "lr": "1", "lr_decay_step": "4", "plot_every": "2"}
    config = make_config(**options, num_workers=num_workers)
    batches = training.epoch_batches(config, 5, 1)
    seen = run_epoch(config, 1, 3, batches)
    assert [[index for index, *_ in pairs] for pairs in seen.steps] == batches
    for index, label, draw in itertools.chain(*seen.steps):
        rng = np.random.default_rng([7, 1, index])
        rng.random()  # the flip
        assert (label, draw) == (index, rng.random())
    assert seen.rates == pytest.approx([2, 0.2, 0.2])  # twice the rate, as for biases
    assert seen.lines == [(4, 1, 1, 1), (6, 1, pytest.approx((2 * 2 + 3 * 1) / 3), pytest.approx(0.1))]
    assert seen.reached == 6
    assert re.findall("step .*", capsys.readouterr().out) == [
        "step 6: all RoIs get the same scores, as from features that are all 0: "
        "start again with a lower --lr, or check --preprocess"
    ]


def test_an_epoch_ends_after_the_step_of_a_signal_and_continues_there():
    config = make_config(batch_size="2")
    batches = training.epoch_batches(config, 5, 1)
    whole, part = run_epoch(config, 1, 3, batches), run_epoch(config, 1, 3, batches, stop_at=2)
    assert (part.steps, part.reached) == (whole.steps[:2], 5)
    rest = run_epoch(config, 1, 5, batches[2:])
    assert (rest.steps, rest.reached) == (whole.steps[2:], 6)


# Weights


@pytest.fixture(scope="module")
def ours(tmp_path_factory, tiny_model):
    """A checkpoint of this library with the classes ant, bee, cow."""
    path = tmp_path_factory.mktemp("weights") / "ours.pth"
    build = {"name": "vgg16", "n_fg_class": 3, "head_width": 16, "anchor_scales": (1, 2, 4)}
    checkpoint = {"model": tiny_model.state_dict(), "build": build | {"min_size": 64, "max_size": 96}}
    checkpoint |= {"class_names": ["ant", "bee", "cow"], "preprocessing": tuple(CAFFE), "config": {}}
    save_checkpoint(path, checkpoint | {"epoch": 0, "step": 5})
    return str(path)


def build(classes, **options):
    return training.build_model(make_config(head_width="16", seed="3", **options), classes)[0]


def test_frozen_convolutions(monkeypatch, tmp_path):
    monkeypatch.setattr("model.vgg16.LAYERS", fixtures.NARROW)

    def frozen(**options):
        net = build(("cat", "dog"), **options)
        return [param.requires_grad for param in net.extractor.parameters()].count(False) / 2

    path = str(tmp_path / "vgg16.pth")
    state = build(("cat",), pretrained="none").extractor.state_dict()
    torch.save({f"features.{name}": value for name, value in state.items()}, path)
    assert frozen(pretrained="none") == 0
    with pytest.warns(UserWarning, match="no fc6 and fc7 that fit"):
        assert frozen(pretrained=path) == 4  # conv1_1 to conv2_2
    assert frozen(pretrained=path, resume="True") == 4  # the optimizer's state must fit, the file need not exist
    assert frozen(pretrained="gone.pth", resume="True", load_path="gone.pth") == 4
    assert frozen(pretrained="none", frozen_convs="2") == 2


def test_a_checkpoint_to_start_from(ours, tiny_model, capsys):
    net = build(("ant", "bee", "cow"), load_path=ours, anchor_scales="1,2,4", min_size="64", max_size="96")
    assert net.preprocessing == CAFFE
    assert same(dict(net.state_dict()), dict(tiny_model.state_dict()))
    assert capsys.readouterr().out == f"{ours}: a checkpoint of this library, step 5\n"  # and no difference
    build(("ant", "bee", "cow"), load_path=ours, anchor_scales="2,4,8", min_size="64", max_size="96")
    note = f"note: {ours} was trained with --anchor-scales=1,2,4, now it is 2,4,8"
    assert capsys.readouterr().out.splitlines()[1:] == [note]


@pytest.mark.parametrize("classes", [("ant", "bee"), ("ant", "cow", "bee")])
def test_other_classes_need_a_new_head(ours, tiny_model, classes):
    with pytest.raises(CheckpointError, match=r"ours\.pth has 3 classes, ant, bee, cow, the data have .*--reset-head"):
        build(classes, load_path=ours)
    net = build(classes, load_path=ours, reset_head="True")
    untrained = build(classes, pretrained="none").state_dict()
    for name, value in net.state_dict().items():
        source = untrained if name.startswith(("head.cls_loc", "head.score")) else tiny_model.state_dict()
        assert torch.equal(value, source[name]), name


@pytest.mark.parametrize(
    ("layout", "options", "preprocessing", "shown"),
    [
        ("torchvision", {}, TORCHVISION, "torchvision"),
        ("torchvision", {"preprocess": "caffe"}, CAFFE, "caffe"),
        ("Caffe", {}, CAFFE, "caffe"),
        ("NaN", {}, TORCHVISION_CAFFE, "Preprocessing(mean=(123.0, 117.0, 104.0)"),  # torchvision's copy of Caffe's
    ],
)
def test_the_weights_of_a_classifier(tmp_path, tiny_model, capsys, layout, options, preprocessing, shown):
    names = [f"features.{name}" for name in tiny_model.extractor.state_dict()]
    if layout == "Caffe":
        convs = [f"conv{block}_{i}" for block in range(1, 6) for i in range(1, 3 + (block > 2))]
        names = [f"{conv}.{kind}" for conv in convs for kind in ("weight", "bias")]
    path = tmp_path / "vgg16.pth"
    state = dict(zip(names, tiny_model.extractor.state_dict().values(), strict=True))
    if layout == "NaN":
        state["classifier.0.weight"], layout = torch.full((2, 2), torch.nan), "torchvision"
    torch.save(state, path)
    with pytest.warns(UserWarning, match="have no fc6 and fc7 that fit"):
        net = build(("ant",), pretrained=str(path), **options)
    assert net.preprocessing == preprocessing
    assert torch.equal(net.extractor[26].weight, tiny_model.extractor[26].weight)
    scale = 1 if preprocessing == TORCHVISION else 0.1  # of Caffe's conv5_3, for fc6 and fc7 that start random
    assert torch.equal(net.extractor[28].weight, tiny_model.extractor[28].weight * scale)
    assert capsys.readouterr().out.startswith(f"{path}: {layout} layout, preprocessing {shown}")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pretrained": "none", "reset_head": "True"}, "--reset-head re-initializes the last layers of a detector"),
        ({"pretrained": "imagenet", "preprocess": "caffe"}, "--preprocess=caffe: these weights state their own"),
        ({"load_path": "OURS", "preprocess": "caffe"}, r"--preprocess=caffe: .*ours\.pth states its own"),
    ],
)
def test_options_that_contradict_the_weights(ours, options, words):
    options = {name: ours if value == "OURS" else value for name, value in options.items()}
    with pytest.raises(OptionError, match=words):
        build(("ant", "bee", "cow"), **options)


# Whole runs


@pytest.fixture(scope="module")
def calm(place):
    """The folder of an undisturbed run of two epochs with six steps each."""
    stress_resume.run(env="calm")
    return place / "runs/calm"


@pytest.fixture
def run(place):
    """A function that trains in runs/a, which is empty at first; and its folder."""
    shutil.rmtree(place / "runs/a", ignore_errors=True)
    run = functools.partial(stress_resume.run, env="a")
    run.folder = place / "runs/a"
    return run


@pytest.fixture
def on_step(monkeypatch):
    """A function that has another one called with trainer and losses after a step, counted from 1."""

    def install(number, call):
        taken, real = [], FasterRCNNTrainer.train_step

        def train_step(trainer, *args):
            losses = real(trainer, *args)
            taken.append(1)
            return (call(trainer, losses) or losses) if len(taken) == number else losses

        monkeypatch.setattr(FasterRCNNTrainer, "train_step", train_step)

    return install


def test_a_run_writes_its_files_and_no_others(calm, place):
    files = ["best.pth", "config.json", "curves.png", "environment.json", "last.pth", "log.jsonl", "pictures"]
    files += ["train.txt", "val.txt"]
    assert sorted(path.name for path in calm.iterdir()) == files
    assert sorted(path.name for path in (calm / "pictures").iterdir()) == ["000006.png", "000012.png"]


def test_config_json_holds_every_option_resolved(calm):
    config = json.loads((calm / "config.json").read_text())
    assert list(config) == list(TrainConfig.model_fields)
    assert (config["env"], config["min_size"], config["anchor_scales"]) == ("calm", 48, [1, 2])
    own = {name: config[name] for name in ("lr", "frozen_convs", "nms_thresh", "n_sample", "lr_decay_epoch")}
    assert own == {"lr": 1e-3, "frozen_convs": 0, "nms_thresh": 0.3, "n_sample": 128, "lr_decay_epoch": [10]}
    unset = {name for name, value in config.items() if value is None and not name.startswith("coco_")}
    others = {"trainable_layers", "batch_norm", "rpn_score_thresh", "batching"}  # of other models
    assert unset - others == {"num_workers", "max_detections", "load_path", "max_steps", "proposals_file", "rpn_lambda"}


def test_log_has_a_line_per_interval_and_one_per_evaluation(calm):
    at = [(line["kind"], line["step"], line["epoch"]) for line in log(calm)]
    intervals = [("train", step, (step - 1) // 6) for step in (2, 4, 6, 8, 10, 12)]
    assert at == [*intervals[:3], ("eval", 6, 0), *intervals[3:], ("eval", 12, 1)]
    for line in log(calm, "train"):
        parts = [line[name] for name in ("rpn_loc", "rpn_cls", "roi_loc", "roi_cls")]
        assert sum(parts) == pytest.approx(line["total"], rel=1e-5)
        assert line["rpn_cls"] > 0 < line["roi_cls"]
        assert 0 <= line["rpn_recall_neg"] <= 1 >= line["roi_acc_bg"] >= 0
        assert 0 < line["n_proposal"] <= 50  # --n-train-post-nms
        assert line["lr"] == pytest.approx(1e-4 if line["step"] > 9 else 1e-3)
    assert list(log(calm, "eval")[-1]["ap"]) == ["bar", "box"]


def test_what_a_checkpoint_holds(calm):
    last, best = (torch.load(calm / name, weights_only=True) for name in ("last.pth", "best.pth"))
    keys = {"format", "model", "build", "class_names", "preprocessing", "config", "epoch", "step", "ids", "processes"}
    keys |= {"split_ids", "eval_ids", "file_sizes"}
    assert last.keys() == keys | {"optimizer", "rng"}
    assert best.keys() == keys | {"map"}
    assert (last["epoch"], last["step"], last["class_names"]) == (1, 12, ["bar", "box"])
    assert last["split_ids"] == {}  # nothing was drawn
    assert json.loads(json.dumps(last["config"])) == json.loads((calm / "config.json").read_text())
    assert len(last["optimizer"]["state"]) == len(last["model"])  # nothing is frozen
    some = {"name": "vgg16", "n_fg_class": 2, "head_width": 16, "dropout": 0.5, "anchor_scales": (1, 2)}
    assert some.items() <= last["build"].items()
    assert same(dict(model.restore(last).state_dict()), dict(last["model"]))


def test_same_seed_same_run_with_any_number_of_workers(calm, run):
    run(num_workers="2")
    assert not differences(calm, run.folder)
    run(overwrite="True", seed="1", max_steps="1")
    assert log(run.folder, "eval")[0]["step"] == 1
    other, first = (load_checkpoint(folder / "last.pth")["model"] for folder in (run.folder, calm))
    assert not torch.equal(other["rpn.conv.weight"], first["rpn.conv.weight"])


def test_the_same_training_from_voc_and_from_coco(place):
    root = fixtures.write_voc(place / "both", {"train": 6, "val": 2})
    path = root / "Annotations/train00002.xml"
    path.write_text(path.read_text().replace("<name>box</name>", "<name>box</name><difficult>1</difficult>"))
    own = {"voc": {"voc_data_dir": "both"}, "coco": write_coco(place, *read_splits(root, ["train", "val"]))}
    for data, options in own.items():  # two steps with three images each
        stress_resume.run(env=data, data=data, **options, batch_size="3", max_steps="2", eval_every="0")
    voc, coco = (load_checkpoint(f"runs/{data}/last.pth") for data in own)
    for key in ("ids", "class_names", "model", "optimizer", "rng"):
        assert same(voc[key], coco[key]), key


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_saves_within_an_epoch_and_resuming_changes_nothing(calm, run, on_step, capfd, number, code):
    def prepare():
        os.setpgrp()
        on_step(8, lambda *args: os.killpg(0, number))  # the workers receive it, too, as when Ctrl-C is pressed

    assert wait(start(prepare, env="a", num_workers="2")) == code
    text = Path("output.txt").read_text()
    assert "Traceback" not in text
    assert "Error" not in text
    assert "last.pth: saved at step 8 of " in text
    assert capfd.readouterr().err.count("finishing the step") == 1  # the workers are silent
    assert load_checkpoint(run.folder / "last.pth")["step"] == 8
    run(resume="True", num_workers="1")
    assert not differences(calm, run.folder)


def test_a_second_signal_exits_at_once(run, on_step):
    def twice(*args):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)

    assert wait(start(lambda: on_step(2, twice), env="a")) == 143
    assert not (run.folder / "last.pth").exists()


def test_a_signal_ends_an_evaluation_which_resuming_repeats(calm, run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", lambda *args, **options: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            run()
    assert load_checkpoint(run.folder / "last.pth")["step"] == 6
    assert not log(run.folder, "eval")
    run(resume="True")
    assert not differences(calm, run.folder)


def test_an_evaluation_in_the_log_is_not_repeated(calm, run, monkeypatch):
    shutil.copytree(calm, run.folder)
    monkeypatch.setattr(training, "evaluate", None)
    run(resume="True")  # at its end already
    assert not differences(calm, run.folder)


def test_a_file_of_class_names_may_move(place, run):
    (place / "names.txt").write_text("bar\nbox\n")
    run(classes="names.txt", max_steps="1")
    (place / "names.txt").rename("moved.txt")
    run(resume="True", classes="moved.txt", max_steps="2")
    assert load_checkpoint(run.folder / "last.pth")["step"] == 2
    with pytest.raises(
        CheckpointError, match=r"the classes differ \(\['bar', 'box'\] in the checkpoint, \['box', 'bar'\]"
    ):
        run(resume="True", classes="box,bar", max_steps="3")


def test_a_finished_run_stays_as_it_is(calm, run, capsys):
    shutil.copytree(calm, run.folder)
    before = {path: path.read_bytes() for path in run.folder.glob("*.*")}
    for options, names in (
        ({"lr": "0.25"}, "--epoch"),
        ({"epoch": "9", "max_steps": "12"}, "--max-steps"),
        ({"max_steps": "10"}, "--epoch and --max-steps"),
    ):
        run(resume="True", **options)
        line = f"runs/a: already finished at step 12, nothing is changed; a higher {names} continues"
        assert capsys.readouterr().out.splitlines()[-3] == line
        assert {path: path.read_bytes() for path in run.folder.glob("*.*")} == before


def test_what_a_resumed_run_changes_is_listed_logged_and_stored(calm, run, capsys):
    shutil.copytree(calm, run.folder)
    run(resume="True", lr="0.25", max_steps="13", epoch="3")
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if line.startswith("changed: ")]
    assert {"--epoch=3 (was 2)", "--max-steps=13 (was none)", "--lr=0.25 (was 0.001)"} <= {*line[9:].split(", ")}
    (record,) = [line for line in log(run.folder) if line["kind"] == "resume"]
    assert record["changed"] == {"epoch": [2, 3], "max_steps": [None, 13], "lr": [0.001, 0.25]}
    assert json.loads((run.folder / "config.json").read_text())["lr"] == 0.25
    assert load_checkpoint(run.folder / "last.pth")["step"] == 13


def test_no_picture_ends_a_training(calm, run, monkeypatch, capsys):
    monkeypatch.setattr("utils.metrics.comparison", lambda *args: 1 / 0)
    monkeypatch.setattr("utils.logger.plot_curves", lambda *args: 1 / 0)
    run()
    assert capsys.readouterr().out.count("failed (ZeroDivisionError") == 2  # once each
    assert not differences(calm, run.folder)
    assert not list((run.folder / "pictures").iterdir())


def test_killed_three_times_a_run_ends_as_if_undisturbed(calm, place):
    *kills, last = stress_resume.kill_and_resume(3, np.random.default_rng(5))
    assert sum(line.startswith("kill ") for line in kills) == 3
    assert last.endswith("times: all equal"), last


def test_best_pth_is_replaced_by_a_better_map_only(run, monkeypatch):
    values, real = iter([0.2, 0.1, 0.2, 0.3]), training.evaluate
    monkeypatch.setattr(training, "evaluate", lambda *args, **kwargs: real(*args, **kwargs)._replace(map=next(values)))
    best = []
    for steps in ("1", "2", "3", "4"):
        run(**{"resume": "True"} if best else {}, max_steps=steps)
        stored = load_checkpoint(run.folder / "best.pth")
        best.append((stored["step"], stored["map"]))
    assert best == [(1, 0.2), (1, 0.2), (1, 0.2), (4, 0.3)]
    assert [line["map"] for line in log(run.folder, "eval")] == [0.2, 0.1, 0.2, 0.3]


def test_a_disk_that_is_full_at_best_pth_loses_no_result(run, capsys, monkeypatch):
    real = training.ckpt.save_checkpoint

    def save(path, checkpoint):
        if path.name == "best.pth":
            raise CheckpointError("No space left on device")
        real(path, checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr(training.ckpt, "save_checkpoint", save)
        with pytest.raises(CheckpointError):
            run(max_steps="1")
    assert "\nmean " in capsys.readouterr().out
    run(resume="True")  # evaluates anew
    assert load_checkpoint(run.folder / "best.pth")["step"] == log(run.folder, "eval")[0]["step"] == 1


def test_images_to_evaluate_on_that_the_loaded_weights_have_seen_are_noted(run, calm, place, capsys):
    mixed = place / "voc/ImageSets/Main/mixed.txt"
    for seen in (1, 0):
        mixed.write_text("\n".join(["val00000", *load_checkpoint(calm / "last.pth")["ids"][:seen]]))
        run(max_steps="1", load_path=str(calm / "last.pth"), eval_split="mixed", overwrite="True")
        note = f"\nnote: {calm}/last.pth was trained on images with 1 of the ids to evaluate on\n"
        assert capsys.readouterr().out.count(note) == seen
    mixed.unlink()


def test_best_pth_is_the_best_of_one_split(run, monkeypatch):
    values, real = iter([0.3, 0.1, 0.2]), training.evaluate
    monkeypatch.setattr(training, "evaluate", lambda *args, **kwargs: real(*args, **kwargs)._replace(map=next(values)))
    best = []
    for steps, split in (("1", "val"), ("2", "train"), ("3", "val")):
        run(**{"resume": "True"} if best else {}, max_steps=steps, eval_split=split)
        best.append(load_checkpoint(run.folder / "best.pth")["step"])
    assert best == [1, 2, 2]


@pytest.mark.parametrize("options", [{}, {"resume": "True"}, {"overwrite": "True"}])
def test_two_trainings_do_not_write_one_folder(calm, run, on_step, options):
    if options.get("resume"):
        shutil.copytree(calm, run.folder)
    on_step(1, lambda *_: outputs.append((wait(start(output="second.txt", env="a", **options)), files())))

    def files():
        return {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()}

    outputs, epochs = [], {"max_steps": "13", "epoch": "3"} if options.get("resume") else {}
    run(**options, **epochs)
    ((code, during),) = outputs
    assert code == "error" or code != 0
    assert "another training writes runs/a: wait for its end, or choose another --env" in Path("second.txt").read_text()
    assert ".lock" in during
    assert not (run.folder / ".lock").exists()
    assert load_checkpoint(run.folder / "last.pth")["step"] == (13 if epochs else 12)


def test_a_run_without_a_checkpoint_starts_again(run, on_step):
    on_step(1, lambda trainer, losses: losses._replace(total=losses.total * np.nan))
    with pytest.raises(training.TrainingError):
        run()
    assert {"config.json", "log.jsonl"} <= {path.name for path in run.folder.iterdir()}
    run(lr="0.25", max_steps="1")
    assert json.loads((run.folder / "config.json").read_text())["lr"] == 0.25


def test_a_drawn_split_stays_when_images_are_added(run, place):
    fixtures.write_voc(place / "flat", {"a": 6})
    shutil.rmtree(place / "flat/ImageSets")
    run(voc_data_dir="flat", max_steps="1")
    first = load_checkpoint(run.folder / "last.pth")
    fixtures.write_voc(place / "flat", {"more": 6})
    shutil.rmtree(place / "flat/ImageSets")
    run(voc_data_dir="flat", max_steps="2", resume="True")
    last = load_checkpoint(run.folder / "last.pth")
    assert last["step"] == 2
    assert last["split_ids"] == first["split_ids"]
    for split, ids in first["split_ids"].items():
        sizes = {path.stat().st_size for path in (place / "flat/JPEGImages").iterdir() if path.stem in ids}
        assert first["file_sizes"][split] == sorted(sizes)
    for split, ids in first["split_ids"].items():  # as a split file
        assert (run.folder / f"{split}.txt").read_text().split() == ids
    assert not list((place / "flat").rglob("*.txt"))


def test_a_loss_that_is_not_finite_stops_the_run(run, on_step):
    on_step(8, lambda trainer, losses: losses._replace(roi_cls=losses.total * np.nan, total=losses.total * np.nan))
    with pytest.raises(training.TrainingError) as caught:
        run()
    (index,) = training.epoch_batches(make_config(), 6, 1)[1]  # the second step of the second epoch
    text = str(caught.value)
    assert text.startswith("step 8: the loss is not finite (rpn_loc ")
    assert f"roi_cls nan), image train{index:05d}; last.pth, if there is one, is as it was. Lower --lr" in text
    assert "\n" not in text
    assert load_checkpoint(run.folder / "last.pth")["step"] == 6


def test_weights_that_are_not_finite_are_not_saved(run, on_step):
    on_step(12, lambda trainer, losses: trainer.model.rpn.conv.bias.data[:1].fill_(np.inf) and None)
    with pytest.raises(
        training.TrainingError,
        match=r"^step 12: a weight is not finite; last\.pth, if there is one, is as it was\. Lower",
    ):
        run()
    assert load_checkpoint(run.folder / "last.pth")["step"] == 6


@pytest.fixture
def two(place, run):
    """A function that trains in two processes with gloo and returns their exit codes."""

    def prepare(rank, port, also):
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        if rank == 0 and also:
            also()

    def run_two(also=None, **options):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        ready = [functools.partial(prepare, rank, port, also) for rank in range(2)]
        pids = [start(ready[rank], f"output{rank}.txt", env="a", **options) for rank in range(2)]
        return [wait(pid, 120) for pid in pids]  # seconds

    return run_two


def test_two_processes_are_one_with_twice_the_batch(place, run, two, on_step):
    stress_resume.run(env="batch", batch_size="2", dropout="0")
    one = place / "runs/batch"
    # only the first process receives a signal, in the last step of an epoch
    codes = two(lambda: on_step(3, lambda *args: signal.raise_signal(signal.SIGINT)), dropout="0")
    assert codes == [130, 143], Path("output0.txt").read_text()
    assert load_checkpoint(run.folder / "last.pth")["step"] == 3
    assert two(resume="True") == [0, 0], Path("output0.txt").read_text()
    assert set(differences(one, run.folder)) <= {"last.pth: processes", "best.pth: processes", "log.jsonl"}
    assert log(one, "eval") == log(run.folder, "eval")
    for line, other in zip(log(one, "train"), log(run.folder, "train"), strict=True):
        assert line.pop("kind") == other.pop("kind")
        assert line == pytest.approx(other, rel=1e-6)
    assert "runs/a: steps 3 to 6 on cpu, fp32" in Path("output0.txt").read_text()
    assert "steps" not in Path("output1.txt").read_text()
    with pytest.raises(CheckpointError, match=r"number of processes differ \(2 in the checkpoint, 1 in this run"):
        run(resume="True")


# Refusals


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"ids": ["train00000"]},
            r"the training images differ \(1 image, e\.g\. .* in the checkpoint, 6 images, .* in this run\): "
            "resume with the same, or ",
        ),
        (
            {"class_names": ["box", "bar"]},
            r"the classes differ \(\['box', 'bar'\] in the checkpoint, \['bar', 'box'\] in this run\): "
            r"resume with --classes=box,bar, or .*last\.pth --reset-head$",
        ),
        ({"class_names": ["box", "tar"]}, "resume with the same, or "),
        ({"class_names": ["box"]}, "resume with --classes=box --unknown-classes=ignore, or "),
        ({"class_names": ["bar", "box", "tar"]}, "resume with --classes=bar,box,tar, or "),
        ({"ids": [f"train{i:05}" for i in (1, 0, 2, 3, 4, 5)]}, r"resume with the order of runs/a/\*\.txt, or "),
        ({"optimizer": {"state": {}}}, "last.pth cannot be used: "),
        ({"format": 1}, r"last\.pth cannot be used: its format 1 is not 2: use the version of this"),
        ({"rng": {}}, "last.pth cannot be used: 'cpu' is missing"),
        ({"preprocessing": (1, 2, 3, 4, 5)}, "last.pth cannot be used: "),
    ],
)
def test_another_run_s_last_pth_is_refused(calm, run, change, words):
    shutil.copytree(calm, run.folder)
    path = run.folder / "last.pth"
    torch.save(torch.load(path, weights_only=True) | change, path)
    before = {path: path.read_bytes() for path in run.folder.glob("*.*")}
    with pytest.raises(CheckpointError, match=words):
        run(resume="True", lr="0.25")
    assert {path: path.read_bytes() for path in run.folder.glob("*.*")} == before


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"device": "cuda:99"}, OptionError, "--device=cuda:99: torch finds"),
        ({"env": "../a"}, OptionError, "--env must be a plain name"),
        ({"data": "no"}, DataError, "--data=no: data/no_dataset.py does not exist; choose one of coco, "),
        ({"train_split": "no"}, DataError, r"no\.txt does not exist; splits in this folder: train, val"),
        ({"pretrained": "no.pth"}, model.WeightsError, r"--pretrained=no\.pth is neither a file nor one of imagenet"),
        ({"load_path": "no.pth"}, CheckpointError, r"no\.pth is not a file"),
        ({"model": "vgg61"}, OptionError, "no backbone 'vgg61' .--model.: choose one of resnet50, .*vgg16"),
        ({"model": "rpn"}, OptionError, "no backbone 'rpn'"),
    ],
)
def test_a_refused_run_writes_nothing(run, options, error, words):
    with pytest.raises(error, match=words):
        run(**options)
    assert not run.folder.exists()


def test_a_data_set_without_objects_is_refused(place, run):
    (place / "voc/ImageSets/Main/empty.txt").write_text("train00005\n")
    with pytest.raises(DataError, match=r"^voc: split empty contains no object to train on") as caught:
        run(train_split="empty")
    assert "\nclasses without objects: all in empty (" in str(caught.value)
    assert not run.folder.exists()


def test_images_of_both_splits_are_counted(tmp_path, capsys):
    root = fixtures.write_voc(tmp_path, {"train": 3, "val": 2})
    with open(root / "ImageSets/Main/val.txt", "a") as file:
        file.write("\ntrain00001\n")
    for split, counted in (("val", True), ("train", False)):
        training.build_datasets(make_config(voc_data_dir=str(root), train_split="train", eval_split=split))
        assert ("note: 1 image to train on will be evaluated on, too" in capsys.readouterr().out) == counted
    (split,) = read_splits(root, ["val"])
    files = write_coco(tmp_path, split, split)
    shutil.copytree(files["coco_eval_images"], tmp_path / "other")  # images of the same names
    for folder, counted in ((files["coco_eval_images"], True), (tmp_path / "other", False)):
        training.build_datasets(make_config(data="coco", **files | {"coco_eval_images": str(folder)}))
        assert ("note: 3 images to train on will be evaluated on, too" in capsys.readouterr().out) == counted


def test_another_evaluation_split_on_a_resume_is_noted(calm, run, capsys):
    shutil.copytree(calm, run.folder)
    run(resume="True")
    assert "others so far" not in capsys.readouterr().out
    stored = torch.load(run.folder / "last.pth", weights_only=True)
    torch.save(stored | {"eval_ids": ["val00000"]}, run.folder / "last.pth")
    run(resume="True")
    assert "note: runs/a/last.pth: the images to evaluate on were others so far" in capsys.readouterr().out


def test_difficult_objects_are_evaluated_always_and_trained_on_when_asked(tmp_path):
    root = fixtures.write_voc(tmp_path, {"train": 2, "val": 2})
    for path in (root / "Annotations").iterdir():
        path.write_text(path.read_text().replace("<name>box</name>", "<name>box</name><difficult>1</difficult>"))
    for use_difficult, n_train in (("False", 1), ("True", 2)):
        config = make_config(voc_data_dir=str(root), train_split="train", eval_split="val", use_difficult=use_difficult)
        assert [len(split.bboxes[0]) for split in training.build_datasets(config)] == [n_train, 2]
