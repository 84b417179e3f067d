"""The options of train.py that are wired here, each in a run of a narrow network: what it builds and stores."""

import pytest
import stress_resume
import torch

import model
import train
import training
from model.rpn_variants import SigmoidRPN
from model.utils.roi_ops import roi_align, roi_pool
from model.utils.roi_warping import roi_warp
from research.non_approximate import NonApproximateTrainer
from research.paper_loss import paper_losses
from trainer import FasterRCNNTrainer, detection_losses
from utils.checkpoint import load_checkpoint
from utils.command import parse_options
from utils.config import OptionError, TrainConfig
from utils.run_folder import changed_options, stored_options


@pytest.fixture
def run(place, monkeypatch):
    """A function that trains two epochs in runs/b; it returns the trainer and the network of the checkpoint."""
    made, real = [], training.build_trainer
    monkeypatch.setattr(train, "build_trainer", lambda *args: made.append(real(*args)) or made[-1])

    def run(**options):
        stress_resume.run(env="b", overwrite="True", **options)
        return made[-1], model.restore(load_checkpoint("runs/b/last.pth"))

    return run


def total(folder, kind="train"):
    return [line["total"] for line in stress_resume.log(folder, kind)]


def test_without_options(run):
    trainer, net = run(max_steps="1")
    assert type(trainer) is FasterRCNNTrainer
    assert trainer.rpn_loss is detection_losses
    assert isinstance(trainer.optimizer, torch.optim.SGD)
    assert net.head.roi_op is roi_pool


@pytest.mark.parametrize(("name", "roi_op"), [("align", roi_align), ("warp", roi_warp)])
def test_roi_operation(run, place, name, roi_op):
    trainer, net = run(roi_op=name, lr="1e-2")
    assert net.head.roi_op is trainer.model.head.roi_op is roi_op
    assert load_checkpoint("runs/b/last.pth")["build"]["roi_op"] == name
    losses = total(place / "runs/b")
    assert losses[-1] < 0.9 * losses[0]


def test_joint_training_that_is_not_approximate(run, place):
    trainer, net = run(joint="non-approximate", lr="1e-2")
    assert type(trainer) is NonApproximateTrainer
    assert net.head.roi_op is trainer.model.head.roi_op is roi_warp
    losses = total(place / "runs/b")
    assert losses[-1] < 0.9 * losses[0]


def test_one_score_the_papers_loss_and_adam(run, place):
    with pytest.warns(UserWarning, match="is a rate for SGD"):
        trainer, net = run(rpn_objectness="sigmoid", rpn_lambda="2", optimizer="adam")
    assert isinstance(net.rpn, SigmoidRPN)
    assert isinstance(trainer.optimizer, torch.optim.Adam)
    assert trainer.rpn_loss.func is paper_losses
    assert trainer.rpn_loss.keywords == {"rpn_lambda": 2, "n_anchor": 6}  # three ratios, two scales
    losses = total(place / "runs/b")
    assert losses[-1] < 0.9 * losses[0]
    stress_resume.run(env="b", resume="True", epoch="3")  # Adam's state fits
    texts = {"env": "b", "resume": "True", "optimizer": "sgd"}
    config = parse_options(TrainConfig, texts, stored_options, model.defaults)
    with pytest.raises(OptionError, match="--optimizer=sgd: the run was started with adam"):
        changed_options(config, model.defaults)
