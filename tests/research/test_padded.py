"""Padded batches: equal to one by one. Equality with torchvision: tests/model/test_resnet_fpn.py."""

import copy
import math

import numpy as np
import pytest
import torch
from torchvision.ops import FrozenBatchNorm2d

import model
from data import Sample
from model.utils.anchor_target_creator import AnchorTargetCreator
from model.utils.proposal_target_creator import ProposalTargetCreator
from research.padded import PaddedTrainer
from trainer import FasterRCNNTrainer, build_optimizer
from training import build_trainer
from utils.command import parse_options
from utils.config import OptionError, TrainConfig

LARGE = 10**6  # more than there are candidates
# as large as `prepare` makes them; both are padded to 64 x 96
SIZES = (60, 90), (64, 85)
BBOXES = [[[8, 20, 40, 90]], [[3, 5, 60, 50], [20, 30, 35, 80], [10, 10, 30, 40]]]


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    options = {"n_fg_class": 2, "head_width": 32, "min_size": 64, "max_size": 90, "batch_norm": "frozen"}
    net = model.build("mobilenet_v3_large_fpn", **options, rpn_score_thresh=0).double()
    for module in net.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight *= 2.2  # else features of random weights vanish
    return net


def samples():
    rng, label = np.random.default_rng(0), np.array([1, 0, 1])
    imgs = [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]
    boxes = [(img, np.array(bbox, np.float32), label[: len(bbox)]) for img, bbox in zip(imgs, BBOXES, strict=True)]
    rest = np.zeros(3, bool), "noise"
    return [Sample(*image, *rest, np.random.default_rng(i)) for i, image in enumerate(boxes)]


def trainers(net, n_sample, lr=0.0):
    creators = AnchorTargetCreator(n_sample, allowed_border=math.inf), ProposalTargetCreator(n_sample)
    for make in (FasterRCNNTrainer, PaddedTrainer):
        own = copy.deepcopy(net)
        own.prepare = lambda img, own=own: (type(own).prepare(own, img)[0].double(), 1.0)
        yield make(own, build_optimizer(own, lr), *creators)


def test_a_step_is_that_of_one_by_one_if_images_have_as_many_samples(net):
    single, padded = trainers(net, n_sample=8, lr=0.1)
    wanted, found = single.train_step(samples()), padded.train_step(samples())
    assert found.stats == wanted.stats
    assert found.stats.n_image == 2
    torch.testing.assert_close(found[:5], wanted[:5])
    start = net.state_dict()
    for name, value in single.model.state_dict().items():
        torch.testing.assert_close(padded.model.state_dict()[name], value, msg=name)
    assert not torch.equal(single.model.state_dict()["rpn.loc.weight"], start["rpn.loc.weight"])
    assert not torch.equal(single.model.state_dict()["extractor.body.0.0.weight"], start["extractor.body.0.0.weight"])


def test_images_weigh_by_their_numbers_of_samples(net):
    single, padded = trainers(net, LARGE)
    first, second = map(single.compute_losses, samples())
    found = padded.compute_losses(samples())
    assert found.stats == tuple(map(sum, zip(first.stats, second.stats, strict=True)))
    for kind, losses in {"anchor": ("rpn_loc", "rpn_cls"), "roi": ("roi_loc", "roi_cls")}.items():
        signs = f"n_pos_{kind}", f"n_neg_{kind}"
        numbers = [sum(getattr(image.stats, sign) for sign in signs) for image in (first, second)]
        assert numbers[0] != numbers[1]
        for name in losses:
            a, b = (getattr(image, name) * number for image, number in zip((first, second), numbers, strict=True))
            torch.testing.assert_close(getattr(found, name), 2 * (a + b) / sum(numbers))
    torch.testing.assert_close(found.total, sum(found[:4]))


def test_given_proposals_and_shares_of_a_batch(net):
    _, padded = trainers(net, 8)
    given = [sample._replace(roi=np.array([[4.0, 6, 30, 50], [20, 30, 60, 84], [0, 0, 9, 9]])) for sample in samples()]
    whole = padded.train_step(given)
    assert whole.stats.n_proposal == 6
    alone = padded.train_step([given[0]._replace(rng=np.random.default_rng(0))])
    share = padded.train_step([given[0]._replace(rng=np.random.default_rng(0))], n_sample=4)
    torch.testing.assert_close(4 * share.total, alone.total)
    assert padded.train_step([], n_sample=2).total == 0
    torch.nn.init.zeros_(padded.model.head.score.weight)
    assert padded.compute_losses(samples()).stats.n_same_score == 2  # of two images: the network is dead


def test_option(net):
    for given, trainer in (({}, PaddedTrainer), ({"batching": "single"}, FasterRCNNTrainer)):
        config = parse_options(TrainConfig, {"model": "mobilenet_v3_large_fpn"} | given, defaults=model.defaults)
        assert type(build_trainer(config, net)) is trainer
    with pytest.raises(OptionError, match="--batching: --model=vgg16 has no such option"):
        parse_options(TrainConfig, {"batching": "padded"}, defaults=model.defaults)
