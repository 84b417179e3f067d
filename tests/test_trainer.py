"""The training step: losses by hand, parameter groups, steps of the real network."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from data import Sample
from model.rpn import RPNOutput
from model.utils.anchor_target_creator import AnchorTargetCreator
from model.utils.proposal_target_creator import ProposalTarget, ProposalTargetCreator
from trainer import FasterRCNNTrainer, Losses, Stats, build_optimizer, count_correct, detection_losses, set_lr

LR = 1e-3


class Stub(nn.Module):
    """A stub of a network: an extractor with a frozen layer, a head that returns given outputs."""

    def __init__(self, roi_cls_loc=None, roi_score=None):
        super().__init__()
        self.register_buffer("loc_mean", torch.zeros(4))
        self.register_buffer("loc_std", torch.tensor([0.1, 0.1, 0.2, 0.2]))
        self.extractor = nn.Sequential(nn.Conv2d(3, 2, 1).requires_grad_(False), nn.Conv2d(2, 2, 1))
        self.answer = roi_cls_loc, roi_score

    def head(self, feature, roi):
        self.roi = roi
        return self.answer


@pytest.fixture
def model(tiny_model):
    return copy.deepcopy(tiny_model)


def sample(seed=0, bbox=((8, 20, 40, 90), (30, 5, 60, 45)), label=(2, 0), roi=None):
    """Make a training sample of 64 x 96 pixels of noise, with a new generator."""
    img = np.random.default_rng(seed).integers(0, 256, (64, 96, 3), np.uint8)
    bbox = np.array(bbox, np.float32).reshape(-1, 4)
    return Sample(
        img, bbox, np.array(label, np.int64), np.zeros(len(bbox), bool), "noise", np.random.default_rng(seed), roi
    )


def make_trainer(model, lr=LR, weight_decay=5e-4, **options):
    return FasterRCNNTrainer(model, build_optimizer(model, lr, weight_decay=weight_decay), **options)


def gradients(model):
    return [param.grad.clone() for param in model.parameters()]


# rows: an object of class 1, background, ignored, an object of class 2
LABEL = torch.tensor([1, 0, -1, 2])
GT_LOC = torch.tensor([[1.0, 2, 3, 4], [0, 0, 0, 0], [0, 0, 0, 0], [-1, -2, -3, -4]])
LOC = GT_LOC + torch.tensor([[0.5, -2, 0, 0.1], [9, 9, 9, 9], [9, 9, 9, 9], [0, 0, 0, -3]])
SCORE = torch.tensor([[1.0, 3, 1], [2, 1, 1], [9, 9, 9], [1, 1, 6]]).log()


@pytest.mark.parametrize(
    ("sigma", "loc"),
    [(1, (0.125 + 1.5 + 0.005) + 2.5), (3, (0.5 - 0.5 / 9) + (2 - 0.5 / 9) + 4.5 * 0.01 + (3 - 0.5 / 9))],
)
def test_losses_by_hand(sigma, loc):
    loc_loss, cls_loss = detection_losses(LOC, SCORE, GT_LOC, LABEL, sigma)
    assert loc_loss.item() == pytest.approx(loc / 3)  # three count
    assert cls_loss.item() == pytest.approx(-(math.log(3 / 5) + math.log(2 / 4) + math.log(6 / 8)) / 3)


def test_losses_against_torch():
    counts, positive = LABEL >= 0, LABEL > 0
    loc_loss, cls_loss = detection_losses(LOC, SCORE, GT_LOC, LABEL, 2)
    torch.testing.assert_close(cls_loss, F.cross_entropy(SCORE[counts], LABEL[counts]))
    torch.testing.assert_close(
        loc_loss, F.smooth_l1_loss(LOC[positive], GT_LOC[positive], beta=0.25, reduction="sum") / 3
    )


@pytest.mark.parametrize("n", [0, 4])
def test_nothing_sampled_is_no_loss(n):
    loc, score = torch.ones(n, 4, requires_grad=True), torch.ones(n, 3, requires_grad=True)
    losses = detection_losses(loc, score, torch.zeros(n, 4), torch.full((n,), -1), 1)
    assert [loss.item() for loss in losses] == [0, 0]
    sum(losses).backward()
    assert not loc.grad.any()
    assert not score.grad.any()


def test_rpn_losses_by_hand():
    anchor = torch.tensor([[0.0, 0, 40, 20], [40, 60, 60, 90], [0, 0, 40, 10], [-5, 0, 40, 20]])
    score = torch.tensor([[1.0, 4], [3, 2], [1, 9], [1, 9]]).log()  # IoU 5/6, 0, 5/12 (ignored), outside
    loc = torch.tensor([[0.0, 0, 0, 0.5], [9, 9, 9, 9], [9, 9, 9, 9], [9, 9, 9, 9]])
    rpn = RPNOutput(loc, score, None, None, anchor)
    trainer = make_trainer(Stub(), rpn_sigma=2)
    bbox = torch.tensor([[0.0, 0, 40, 24]])
    loc_loss, cls_loss, counts = trainer.rpn_losses(rpn, bbox, (64, 96), np.random.default_rng(0))
    dx, dw = 2 / 20, math.log(24 / 20)  # from the first anchor to the object
    assert loc_loss.item() == pytest.approx((0.5 * 4 * dx**2 + (0.5 - dw - 0.5 / 4)) / 2)
    assert cls_loss.item() == pytest.approx(-(math.log(4 / 5) + math.log(3 / 5)) / 2)
    assert counts.tolist() == [1, 1, 1, 1]


def test_head_losses_by_hand():
    """The object itself, of class 1 (2 inside the head), and a background; every class has its own loc."""
    roi_cls_loc = torch.zeros(2, 4, 4)
    roi_cls_loc[0, 2] = torch.tensor([0, 3.0, 0.5, 0])
    roi_cls_loc[0, 1] = roi_cls_loc[0, 3] = roi_cls_loc[:, 0] = roi_cls_loc[1] = 9
    roi_cls_loc.requires_grad_()
    roi_score = torch.tensor([[1.0, 1, 5, 1], [3, 1, 1, 5]]).log()
    model = Stub(roi_cls_loc, roi_score)
    bbox = torch.tensor([[10.0, 20, 30, 60]])
    loc_loss, cls_loss, counts = make_trainer(model).head_losses(
        None, torch.tensor([[40.0, 5, 60, 15]]), bbox, torch.tensor([1]), np.random.default_rng(0)
    )
    assert model.roi.tolist() == [[10, 20, 30, 60], [40, 5, 60, 15]]  # the RoIs passed to the head
    assert loc_loss.item() == pytest.approx((2.5 + 0.125) / 2)
    assert cls_loss.item() == pytest.approx(-(math.log(5 / 8) + math.log(3 / 10)) / 2)
    assert counts.tolist() == [1, 1, 1, 0, 0]  # the background is classified as class 3; the scores differ
    loc_loss.backward()
    assert {tuple(index[:2]) for index in roi_cls_loc.grad.nonzero().tolist()} == {(0, 2)}


def test_head_losses_take_their_own_sigma_and_padded_targets():
    """A creator may pad with label -1; such rows are ignored."""
    model = Stub(torch.full((3, 3, 4), 0.5), torch.zeros(3, 3))

    def creator(roi, bbox, label, rng):
        padded = np.concatenate((bbox, bbox, bbox))
        return ProposalTarget(padded, np.zeros((3, 4), np.float32), np.array([2, 0, -1]))

    trainer = make_trainer(model, proposal_target_creator=creator, rpn_sigma=1, roi_sigma=3)
    bbox = torch.tensor([[10.0, 20, 30, 60]])
    loc_loss, cls_loss, _ = trainer.head_losses(None, bbox[:0], bbox, torch.tensor([1]), None)
    assert loc_loss.item() == pytest.approx(4 * (0.5 - 0.5 / 9) / 2)
    assert cls_loss.item() == pytest.approx(math.log(3))


def test_count_correct():
    score = torch.tensor([[0, 9, 1], [0, 1, 9], [5, 1, 1], [1, 5, 1], [9, 1, 1], [0, 9, 0]])
    label = torch.tensor([1, 1, 0, 0, -1, -1])  # two of class 1, two of background, two ignored
    assert count_correct(score, label).tolist() == [2, 1, 2, 1]


def test_two_groups_of_parameters():
    model = Stub()
    optimizer = build_optimizer(model, lr=0.01, momentum=0.8, weight_decay=0.3)
    weights, biases = optimizer.param_groups
    trained = model.extractor[1]
    assert weights["params"] == [trained.weight]  # the frozen layer is in neither
    assert biases["params"] == [trained.bias]
    assert [(group["lr"], group["weight_decay"], group["momentum"]) for group in (weights, biases)] == [
        (0.01, 0.3, 0.8),
        (0.02, 0.0, 0.8),
    ]
    set_lr(optimizer, 0.001)
    assert (weights["lr"], biases["lr"]) == (0.001, 0.002)


def test_default_numbers():
    model = Stub()
    model.loc_mean += torch.tensor([1, 2, 3, 4])
    model.loc_std *= 2
    trainer = FasterRCNNTrainer(model, None)
    assert (trainer.rpn_sigma, trainer.roi_sigma) == (3, 1)
    assert (trainer.anchor_target_creator.n_sample, trainer.proposal_target_creator.n_sample) == (256, 128)
    assert trainer.proposal_target_creator.loc_mean == [1, 2, 3, 4]  # as the model undoes it
    assert trainer.proposal_target_creator.loc_std == pytest.approx([0.2, 0.2, 0.4, 0.4])
    groups = build_optimizer(model, 1e-3).param_groups
    assert [(group["lr"], group["weight_decay"], group["momentum"]) for group in groups] == [
        (1e-3, 5e-4, 0.9),
        (2e-3, 0.0, 0.9),
    ]


def test_all_parameters_of_the_network_are_in_a_group(model):
    weights, biases = build_optimizer(model, LR).param_groups
    assert {id(param) for param in weights["params"]} == {
        id(layer.weight) for layer in model.modules() if hasattr(layer, "weight")
    }
    assert {id(param) for param in biases["params"]} == {
        id(layer.bias) for layer in model.modules() if hasattr(layer, "bias")
    }


def test_step_gives_four_losses_and_their_sum(model):
    img_sizes = []

    def creator(bbox, anchor, img_size, rng):
        img_sizes.append(img_size)
        return AnchorTargetCreator()(bbox, anchor, img_size, rng)

    losses = make_trainer(model, anchor_target_creator=creator).compute_losses(sample())
    assert img_sizes == [(64, 96)]
    assert type(losses) is Losses
    assert losses.total.item() == pytest.approx(sum(loss.item() for loss in losses[:4]))
    assert all(loss.item() > 0 for loss in losses[:5])
    assert {loss.dtype for loss in losses[:5]} == {torch.float32}
    losses.total.backward()
    assert all(param.grad.abs().sum() > 0 for param in model.parameters())


def test_boxes_are_resized_with_the_image(model):
    """The image is 64 x 96, its input 32 x 48: each box, and each given proposal, is halved."""
    model.min_size, model.max_size, seen = 32, 48, []

    def anchor_targets(bbox, anchor, img_size, rng):
        seen.append(bbox)
        return AnchorTargetCreator()(bbox, anchor, img_size, rng)

    def roi_targets(roi, bbox, label, rng):
        seen.extend((roi, bbox, label))
        return ProposalTargetCreator()(roi, bbox, label, rng)

    trainer = make_trainer(model, anchor_target_creator=anchor_targets, proposal_target_creator=roi_targets)
    trainer.compute_losses(sample(roi=np.array([[2, 4, 60, 80]], np.float32)))
    halved = [[4, 10, 20, 45], [15, 2.5, 30, 22.5]]
    assert [array.tolist() for array in seen] == [halved, [[1, 2, 30, 40]], halved, [2, 0]]


def test_stats_are_the_counts_of_the_targets(model):
    targets = []
    trainer = make_trainer(model)
    for name in ("anchor_target_creator", "proposal_target_creator"):
        creator = getattr(trainer, name)
        setattr(trainer, name, lambda *args, of=creator: targets.append(of(*args)) or targets[-1])
    stats = trainer.train_step([sample(0), sample(1)]).stats
    assert type(stats) is Stats
    label = np.concatenate([target.label for target in targets[::2]])
    roi_label = np.concatenate([target.gt_roi_label for target in targets[1::2]])
    assert (stats.n_image, stats.n_pos_anchor, stats.n_neg_anchor) == (2, (label > 0).sum(), (label == 0).sum())
    assert (stats.n_pos_roi, stats.n_neg_roi) == ((roi_label > 0).sum(), (roi_label == 0).sum())
    assert 0 <= stats.n_pos_roi_correct <= stats.n_pos_roi
    assert 0 < stats.n_proposal <= 4000


def test_a_dead_network_is_counted(model):
    trainer = make_trainer(model)
    assert trainer.compute_losses(sample(0)).stats.n_same_score == 0
    extract = model.extractor.forward
    model.extractor.forward = lambda x: extract(x) * 0
    assert trainer.train_step([sample(0), sample(1)]).stats.n_same_score == 2


def test_train_step_takes_the_mean_of_its_samples(model):
    trainer = make_trainer(model, weight_decay=0.1)
    before = [param.detach().clone() for param in model.parameters()]
    single, losses = [], []
    for seed in (0, 1):
        losses.append(trainer.compute_losses(sample(seed)))
        losses[-1].total.backward()
        single.append(gradients(model))
        model.zero_grad()
    model.eval()
    mean = trainer.train_step([sample(seed) for seed in (0, 1)])
    assert model.training
    assert type(mean) is Losses
    assert not any(loss.requires_grad or loss.dim() for loss in mean[:5])
    for ours, one, two in zip(mean[:5], *(loss[:5] for loss in losses), strict=True):
        assert ours.item() == pytest.approx((one.item() + two.item()) / 2, rel=1e-4)
    for (name, param), old, one, two in zip(model.named_parameters(), before, *single, strict=True):
        grad = (one + two) / 2
        torch.testing.assert_close(param.grad, grad, rtol=1e-3, atol=1e-5)
        step = 2 * LR * grad if name.endswith("bias") else LR * (grad + 0.1 * old)
        torch.testing.assert_close(param.detach(), old - step, rtol=1e-4, atol=1e-6)


def test_gradients_do_not_accumulate_over_steps(model):
    trainer = make_trainer(model, lr=0.0)
    trainer.train_step([sample()])
    first = gradients(model)
    trainer.train_step([sample()])
    assert all(torch.equal(one, two) for one, two in zip(first, gradients(model), strict=True))


def test_image_without_objects_trains(model):
    trainer = make_trainer(model)
    losses = trainer.train_step([sample(bbox=(), label=())])
    assert losses.rpn_loc == losses.roi_loc == 0
    assert losses.rpn_cls > 0
    assert losses.roi_cls > 0
    assert all(param.isfinite().all() for param in model.parameters())


def test_nothing_proposed_and_nothing_sampled_trains(model):
    model.rpn.proposal_creator.min_size = 1000
    creator = ProposalTargetCreator(neg_iou_thresh_lo=0.1)
    losses = make_trainer(model, proposal_target_creator=creator).train_step([sample(bbox=(), label=())])
    assert losses.roi_loc == losses.roi_cls == 0
    assert losses.total == losses.rpn_cls > 0
    assert all(param.isfinite().all() for param in model.parameters())


def test_no_list_is_an_index(model):
    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is torch.Tensor.__getitem__:  # a GPU would wait for the copy of a list
                assert not any(isinstance(index, list) for index in (args[1] if type(args[1]) is tuple else [args[1]]))
            return func(*args, **kwargs or {})

    with Watch():
        make_trainer(model).train_step([sample()])


def test_same_seed_same_losses_and_weights(model, tiny_model):
    twin = copy.deepcopy(tiny_model)
    ours, theirs = (
        [trainer.train_step([sample(seed)]) for seed in (0, 1)] for trainer in (make_trainer(model), make_trainer(twin))
    )
    assert ours == theirs
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), twin.parameters(), strict=True))
    assert not torch.equal(model.head.fc6.weight, tiny_model.head.fc6.weight)


def test_both_creators_draw_from_the_samples_generator(model):
    one = sample()
    model.rpn.proposal_creator.n_test_post_nms = 1  # training proposes more
    make_trainer(model.eval()).compute_losses(one)
    n_anchor = 4 * 6 * 9
    with torch.no_grad():
        n_roi = len(model.train()(*model.prepare(one.img)).rpn.roi)
    after = np.random.default_rng(0)
    after.random(n_anchor, dtype=np.float32)
    after.random(n_roi + 2, dtype=np.float32)  # the two objects join the proposals
    assert one.rng.bit_generator.state == after.bit_generator.state


def test_bfloat16_runs_the_layers_but_not_the_boxes(model):
    seen = {}
    model.extractor.register_forward_hook(lambda module, args, out: seen.update(feature=out))
    model.rpn.register_forward_hook(lambda module, args, out: seen.update(rpn=out))
    model.head.register_forward_hook(lambda module, args, out: seen.update(roi=args[1], head=out))
    expected = make_trainer(model).compute_losses(sample())
    assert seen["feature"].dtype == torch.float32
    losses = make_trainer(model, dtype=torch.bfloat16).compute_losses(sample())
    assert seen["feature"].dtype == torch.bfloat16
    assert {tensor.dtype for tensor in (*seen["rpn"], seen["roi"], *seen["head"], *losses[:5])} == {torch.float32}
    for ours, theirs in zip(losses[:5], expected[:5], strict=True):
        assert ours.item() == pytest.approx(theirs.item(), rel=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_bfloat16_gives_the_losses_of_float32(model, seed):
    """From the same proposals: rounding changes the order of untrained scores, which are nearly equal."""
    losses, roi = [], None
    for dtype in (None, torch.bfloat16):
        trainer, one = make_trainer(model, dtype=dtype), sample(seed)
        img, scale = model.prepare(one.img)
        bbox, label = torch.from_numpy(one.bbox), torch.from_numpy(one.label)
        with torch.no_grad():
            if roi is None:
                roi = model.rpn(model.extractor(img), (64, 96), scale, train=True).roi
            losses.append(trainer.forward(img, bbox, label, scale, one.rng, roi)[:4])
    assert losses[0] != losses[1]
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=0)


def test_several_processes_share_a_step(model, monkeypatch):
    """Two samples here, or one here and one elsewhere, whose losses and gradients are summed."""
    losses = (whole := make_trainer(copy.deepcopy(model))).train_step([sample(0), sample(1)])
    others = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: others.append(tensor.clone()))
    make_trainer(copy.deepcopy(model), lr=0.0).train_step([sample(1)], n_sample=2)

    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.add_(others.pop(0)))
    here = make_trainer(copy.deepcopy(model))
    torch.testing.assert_close(here.train_step([sample(0)], n_sample=2)[:5], losses[:5])
    assert not others
    for ours, theirs in zip(here.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_process_without_a_sample_takes_part(model, monkeypatch):
    seen = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", seen.append)
    before = copy.deepcopy(model.state_dict())
    losses = make_trainer(model, weight_decay=0.0).train_step([], n_sample=1)
    assert torch.stack(losses[:5]).tolist() == [0] * 5
    assert len(seen) == 1 + len(list(model.parameters()))
    assert not any(tensor.any() for tensor in seen)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
