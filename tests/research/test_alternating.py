"""Four-step alternating training: what each step trains, its files, and resuming within a step."""

import json
import os
import shutil
import signal

import fixtures
import numpy as np
import pytest
import torch
from stress_resume import differences, log, same

import model
import research.alternating as alternating
from data import Sample
from model.rpn import RPNOutput
from research.alternating import AlternatingConfig, UnsharedDetector, WithProposals, propose, step_options
from research.fast_rcnn import FastRCNNTrainer, RPNTrainer
from trainer import FasterRCNNTrainer
from training import build_datasets
from utils.checkpoint import load_checkpoint, stored_options
from utils.config import OptionError, parse_options

OPTIONS = fixtures.OPTIONS | {"rpn_steps": "5,3", "detector_steps": "2,1", "eval_every": "0", "lr": "1e-2"}
FOLDERS = ["1-rpn", "2-detector", "3-rpn", "4-detector"]


def make_config(**options):
    stored = stored_options(options, AlternatingConfig)
    return parse_options(AlternatingConfig, options if stored else OPTIONS | options, stored, model.defaults)


def run(**options):
    alternating.main(make_config(**options))


@pytest.fixture(scope="module")
def calm(place):
    """The folder of an undisturbed run."""
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


def test_files_and_log(calm):
    names = [
        "config.json",
        "curves.png",
        "environment.json",
        "last.pth",
        "log.jsonl",
        "pictures",
        "train.txt",
        "val.txt",
    ]
    assert sorted(path.name for path in calm.iterdir()) == [*FOLDERS, "config.json", "last.pth"]
    for name in FOLDERS:
        own = ["proposals.npz"] if "rpn" in name else ["best.pth"]
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
        with np.load(calm / name / "proposals.npz") as file:
            assert file["ids"].tolist() == train_set.ids
            rois = np.split(file["roi"], np.cumsum(file["count"])[:-1])
        for roi, expected, (height, width) in zip(rois, propose(net, train_set), train_set.sizes, strict=True):
            assert 0 < len(roi) <= 50  # --n-train-post-nms
            assert np.array_equal(roi, expected)
            assert (roi[:, 2] <= height + 1e-3).all()
            assert (roi[:, 3] <= width + 1e-3).all()


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
    proposals = list(stopped.glob("*/proposals.npz"))
    times = [path.stat().st_mtime_ns for path in proposals]
    run(env="stopped", resume="True")
    assert [path.stat().st_mtime_ns for path in proposals] == times  # computed once
    for name in FOLDERS:
        ours, theirs = (load_checkpoint(folder / name / "last.pth") for folder in (calm, stopped))
        assert [key for key in ours if key != "config" and not same(ours[key], theirs[key])] == []
    assert differences(calm / "4-detector", stopped / "4-detector") == []


def test_what_cannot_change_or_is_no_option(calm):
    with pytest.raises(OptionError, match="--rpn-steps=9: the run was started with 5,3, which cannot change"):
        run(env="calm", resume="True", rpn_steps="9")
    with pytest.raises(OptionError, match="--max-steps: the run was started with another"):
        run(env="calm", resume="True", max_steps="9")
    for name, text in (("epoch", "3"), ("lr_decay_epoch", "2"), ("lr_decay_step", "2"), ("joint", "non-approximate")):
        with pytest.raises(OptionError, match=f"--{name.replace('_', '-')} must "):
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


def sample(roi=None):
    img = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    bbox = np.array([[8, 20, 40, 90]], np.float32)
    return Sample(img, bbox, np.array([1]), np.zeros(1, bool), "noise", np.random.default_rng(0), roi)


def test_the_halves_have_the_losses_of_the_whole(tiny_model):
    roi = np.array([[10, 20, 30, 80], [0, 5, 60, 40]], np.float32)
    whole = FasterRCNNTrainer(tiny_model, None).compute_losses(sample(roi))
    rpn = RPNTrainer(tiny_model, None).compute_losses(sample())
    assert rpn[:2] == whole[:2]
    assert (rpn.roi_loc, rpn.roi_cls, rpn.total) == (0, 0, rpn.rpn_loc + rpn.rpn_cls)
    assert rpn.stats[:6] == (1, 0, *whole.stats[2:6])

    class NoAnchors(FasterRCNNTrainer):  # draws nothing for anchors
        def rpn_losses(self, rpn: RPNOutput, bbox, img_size, rng):
            return 0, 0, torch.zeros(4)

    whole = NoAnchors(tiny_model, None).compute_losses(sample(roi))
    head = FastRCNNTrainer(tiny_model, None).compute_losses(sample(roi))
    assert head[2:5] == whole[2:5]
    assert (head.rpn_loc, head.rpn_cls, head.stats.n_proposal) == (0, 0, 2)
    assert head.stats[6:] == whole.stats[6:]


def test_two_networks_that_share_nothing(tiny_model):
    """Proposals come from the first, classes and boxes from the second; of one network twice, it is that network."""
    img, build = sample().img, {"n_fg_class": 3, "head_width": 16, "min_size": 64, "max_size": 96}
    other = model.build(**build, anchor_scales=(2, 3), generator=torch.Generator().manual_seed(1)).eval()
    both = UnsharedDetector(tiny_model, other).eval()
    x, scale = tiny_model.prepare(img)
    with torch.no_grad():
        out, proposed = both(x, scale), tiny_model.eval()(x, scale)
        roi_cls_loc, roi_score = other.head(other.extractor(x), proposed.rpn.roi)
    assert torch.equal(out.rpn.roi, proposed.rpn.roi)
    assert torch.equal(out.roi_score, roi_score)
    assert torch.equal(out.roi_cls_loc, roi_cls_loc)
    same_twice = UnsharedDetector(other, other).predict([img], score_thresh=0)
    assert all(
        np.array_equal(a[0], b[0]) for a, b in zip(same_twice, other.predict([img], score_thresh=0), strict=True)
    )


def test_samples_with_proposals(place):
    train_set, _ = build_datasets(make_config())
    rois = [np.full((i, 4), i, np.float32) for i in range(len(train_set))]
    samples = WithProposals(train_set, rois)
    assert len(samples) == 6
    assert (samples[3].id, samples[3].roi.tolist()) == (train_set.ids[3], [[3] * 4] * 3)
