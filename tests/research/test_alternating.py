"""Four-step alternating training: what each step trains, its files, and resuming within a step."""

import json
import os
import shutil
import signal
from types import SimpleNamespace

import fixtures
import numpy as np
import pytest
import torch
from stress_resume import differences, log, same

import model
import research.alternating as alternating
import training
from data.proposals import read_proposals, write_proposals
from research.alternating import AlternatingConfig, step_options
from trainer import FasterRCNNTrainer
from training import build_datasets
from utils.checkpoint import load_checkpoint
from utils.command import parse_options
from utils.config import OptionError
from utils.run_folder import stored_options

OPTIONS = fixtures.OPTIONS | {"rpn_steps": "5,3", "detector_steps": "2,1", "eval_every": "0", "lr": "1e-2"}
FOLDERS = ["1-rpn", "2-detector", "3-rpn", "4-detector"]


def make_config(**options):
    stored = stored_options(options, AlternatingConfig)
    return parse_options(AlternatingConfig, options if stored else OPTIONS | options, stored, model.defaults)


def run(**options):
    alternating.main(make_config(**options))


EVALUATED = []  # data sets of the undisturbed run's evaluations of a detector


@pytest.fixture(scope="module")
def calm(place):
    """The folder of an undisturbed run."""
    real = training.evaluate

    def evaluate(net, dataset, *args, **kwargs):
        EVALUATED.append(dataset)
        return real(net, dataset, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "evaluate", evaluate)
        run(env="calm")
    return place / "runs/calm"


def weights(folder, part=""):
    state = load_checkpoint(folder / "last.pth")["model"]
    return {name: value for name, value in state.items() if name.startswith(part)}


def test_what_each_step_trains(calm):
    untrained = alternating.build_model(make_config(), ("bar", "box"))[0].state_dict()
    first, second, third, fourth = (calm / name for name in FOLDERS)
    changed = {}
    for name, before, after in (
        ("1", untrained, weights(first)),
        ("2", untrained, weights(second)),
        ("3", weights(second), weights(third)),
        ("4", weights(third), weights(fourth)),
    ):
        changed[name] = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"1": {"extractor", "rpn"}, "2": {"extractor", "head"}, "3": {"rpn"}, "4": {"head"}}


def test_the_result_is_one_network_with_shared_convolutions(calm):
    result = load_checkpoint(calm / "last.pth")
    assert same(weights(calm, "extractor"), weights(calm / "2-detector", "extractor"))  # bit for bit
    assert same(weights(calm, "rpn"), weights(calm / "3-rpn", "rpn"))
    assert same(weights(calm, "head"), weights(calm / "4-detector", "head"))
    bboxes, _, _ = model.restore(result).predict([np.zeros((48, 64, 3), np.uint8)], score_thresh=0)
    assert len(bboxes[0]) > 0


def test_step_two_is_evaluated_on_the_proposals_of_step_one(calm):
    """The RPN of its own network is untrained; that of step 4's network is step 3's."""
    second, fourth = EVALUATED
    rois = read_proposals(calm / "1-rpn/proposals_eval.npz")
    assert list(rois) == second.ids == fourth.ids
    assert all(np.array_equal(second[i].roi, rois[second.ids[i]]) for i in range(3))
    assert max(map(len, rois.values())) <= 20  # --n-test-post-nms
    assert fourth[0].roi is None


def test_files_and_log(calm):
    names = ["config.json", "curves.png", "environment.json", "last.pth", "log.jsonl", "pictures"]
    names += ["train.txt", "val.txt"]
    assert sorted(path.name for path in calm.iterdir()) == [*FOLDERS, "config.json", "last.pth"]
    for name in FOLDERS:
        own = ["proposals_eval.npz", "proposals_train.npz"] if "rpn" in name else ["best.pth"]
        assert sorted(path.name for path in (calm / name).iterdir()) == sorted(names + own)
        (evaluation,) = log(calm / name, "eval")
        config = json.loads((calm / name / "config.json").read_text())
        if "rpn" in name:
            assert (evaluation["step"], evaluation["map"]) == (8, None)
            recall = list(evaluation["recall"].values())
            assert 0 < recall[-1] <= 1
            assert recall == sorted(recall)
            assert [row["roi_cls"] for row in log(calm / name, "train")] == [0] * 4
            assert [row["lr"] for row in log(calm / name, "train")] == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3])
            assert (config["batch_size"], config["lr_decay_step"]) == (1, [5])
        else:
            assert evaluation["step"] == 3
            assert 0 <= evaluation["map"] <= 1
            assert [row["rpn_cls"] for row in log(calm / name, "train")] == [0]
            assert (config["batch_size"], config["n_sample"], config["neg_iou_lo"]) == (2, 64, 0.1)


def test_proposals_are_those_of_the_step(calm):
    train_set, _ = build_datasets(make_config())
    for name in ("1-rpn", "3-rpn"):
        net = model.restore(load_checkpoint(calm / name / "last.pth"))
        rois = read_proposals(calm / name / "proposals_train.npz")
        assert list(rois) == train_set.ids
        for sample in train_set:
            x, scale = net.prepare(sample.img)
            with torch.no_grad():
                expected = net.rpn(net.extractor(x), x.shape[2:], scale, True).roi.numpy()
            assert 0 < len(expected) <= 50  # --n-train-post-nms
            expected[:, ::2] *= sample.img.shape[0] / x.shape[2]
            expected[:, 1::2] *= sample.img.shape[1] / x.shape[3]
            np.testing.assert_allclose(rois[sample.id], expected, rtol=1e-5)


def test_proposals_of_images_that_came_are_computed(calm, tmp_path):
    train_set, _ = build_datasets(make_config())
    trainer = SimpleNamespace(model=model.restore(load_checkpoint(calm / "1-rpn/last.pth")), dtype=None)
    rois = read_proposals(calm / "1-rpn/proposals_train.npz")
    write_proposals(tmp_path / "proposals_train.npz", dict([*rois.items()][:2]))
    dataset = alternating.add_proposals(tmp_path, trainer, train_set, True, 0)
    for i, image_id in enumerate(train_set.ids):
        np.testing.assert_allclose(dataset[i].roi, rois[image_id], rtol=1e-5)


@pytest.mark.parametrize("stop_at", [3, 10, 13])  # steps of all steps together: within 1-rpn, 2-detector, 3-rpn
def test_a_stopped_run_ends_as_if_undisturbed(calm, place, monkeypatch, stop_at):
    shutil.rmtree(place / "runs/stopped", ignore_errors=True)
    taken, real = [], FasterRCNNTrainer.train_step

    def train_step(trainer, *args):
        taken.append(1)
        if len(taken) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(FasterRCNNTrainer, "train_step", train_step)
        with pytest.raises(SystemExit) as caught:
            run(env="stopped")
    assert caught.value.code == 143
    assert len(taken) == stop_at
    stopped = place / "runs/stopped"
    proposals = list(stopped.glob("*/proposals_*.npz"))
    times = [path.stat().st_mtime_ns for path in proposals]
    run(env="stopped", resume="True")
    assert [path.stat().st_mtime_ns for path in proposals] == times  # computed once
    for name in FOLDERS:
        ours, theirs = (load_checkpoint(folder / name / "last.pth") for folder in (calm, stopped))
        assert [key for key in ours if key != "config" and not same(ours[key], theirs[key])] == []
    assert differences(calm / "4-detector", stopped / "4-detector") == []


def test_a_finished_run_stays_as_it_is(calm, capsys):
    before = {path: path.stat().st_mtime_ns for path in calm.rglob("*")}
    run(env="calm", resume="True", lr="0.5")
    assert capsys.readouterr().out == "runs/calm: already finished, nothing is changed\n"
    assert {path: path.stat().st_mtime_ns for path in calm.rglob("*")} == before


def test_what_cannot_change_or_is_no_option(calm):
    with pytest.raises(OptionError, match="--rpn-steps=9: the run was started with 5,3, which cannot change"):
        run(env="calm", resume="True", rpn_steps="9")
    with pytest.raises(
        OptionError, match=r"^runs/calm is a run of another command, train\.py or research\.alternating"
    ):
        stored_options({"env": "calm", "resume": "True"})
    with pytest.raises(OptionError, match="--max-steps: the run was started with another"):
        run(env="calm", resume="True", max_steps="9")
    values = {"epoch": "3", "lr_decay_epoch": "2", "lr_decay_step": "2", "joint": "non-approximate"}
    for name, text in (values | {"proposals_file": "a"}).items():
        with pytest.raises(OptionError, match=f"^--{name.replace('_', '-')}: no option here"):
            make_config(**{name: text})


@pytest.mark.parametrize(
    ("options", "part", "n_image", "n_step", "decays"),
    [
        ({}, "rpn", 5011, 80000, [60000]),  # 3.1.3
        ({}, "detector", 16551, 40000, [30000]),  # not more for more images
        ({}, "rpn", 501, 5999 + 2000, [5999]),
        ({"detector_steps": "9,4,2"}, "detector", 6, 15, [9, 13]),
        ({"rpn_steps": "9"}, "rpn", 6, 9, []),
        ({"max_steps": "7"}, "rpn", 5011, 7, [60000]),
    ],
)
def test_numbers_of_steps(options, part, n_image, n_step, decays):
    made = step_options(parse_options(AlternatingConfig, options, defaults=model.defaults), part, n_image)
    assert (made["max_steps"], made["lr_decay_step"]) == (n_step, decays)
