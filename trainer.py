"""One training step: an image in, four losses out, one optimizer step (approximate joint training, paper 3.2).

K: anchors. R: proposals. S: sampled RoIs. G: ground-truth boxes of the image. L: foreground classes.
C: channels of the feature map; h, w: its sides.
"""

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.utils.anchor_target_creator import AnchorTargetCreator
from model.utils.array_tool import call_creator, upload
from model.utils.bbox_tools import resize_bbox
from model.utils.proposal_target_creator import ProposalTargetCreator

# int64 scalars on the device, sums over images: what was trained on, and how much of it was classified correctly
Stats = namedtuple(
    "Stats",
    "n_image n_proposal n_pos_anchor n_pos_anchor_correct n_neg_anchor n_neg_anchor_correct "
    "n_pos_roi n_pos_roi_correct n_neg_roi n_neg_roi_correct n_same_score",
)


class Losses(NamedTuple):
    """The four losses and their sum, and the counts, on the device."""

    rpn_loc: Tensor
    rpn_cls: Tensor
    roi_loc: Tensor
    roi_cls: Tensor
    total: Tensor
    stats: Stats


def build_optimizer(model, lr, momentum=0.9, weight_decay=5e-4, bias_lr_mult=2, bias_decay=0.0):
    """Build SGD (paper 3.1.3) with two groups, weights and biases.

    Biases have `bias_lr_mult` times the rate (Fast R-CNN 2.3: 2) and their own decay, 0 (a deviation: Fast R-CNN
    decays them).
    """
    trained = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    weights = [param for name, param in trained if not name.endswith("bias")]
    biases = [param for name, param in trained if name.endswith("bias")]
    groups = [
        {"params": weights, "weight_decay": weight_decay, "lr_mult": 1},
        {"params": biases, "weight_decay": bias_decay, "lr_mult": bias_lr_mult},
    ]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, fused=True)
    set_lr(optimizer, lr)
    return optimizer


def set_lr(optimizer, lr):
    """Set the learning rate of every group to `lr` times the group's "lr_mult"."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_mult"]


@dataclass
class FasterRCNNTrainer:
    """Compute the losses of `model` and take optimizer steps."""

    model: Any  # a `FasterRCNN`, on its device
    optimizer: torch.optim.Optimizer | None  # of its parameters; None: losses only
    anchor_target_creator: Callable | None = None  # None: that of the paper
    proposal_target_creator: Callable | None = None  # None: that of the paper, with the model's loc_mean and loc_std
    rpn_sigma: float = 3.0  # smooth L1 is quadratic below 1 / sigma² (py-faster-rcnn)
    roi_sigma: float = 1.0  # the same in the head (Fast R-CNN 2.3)
    dtype: torch.dtype | None = None  # torch.bfloat16: autocast of the layers; boxes and losses stay float32
    rpn_loss: Callable | None = None  # of the RPN, with the arguments of `detection_losses`; None: that one

    def __post_init__(self):
        self.anchor_target_creator = self.anchor_target_creator or AnchorTargetCreator()
        self.rpn_loss = self.rpn_loss or detection_losses
        if self.proposal_target_creator is None:
            loc = {"loc_mean": self.model.loc_mean.tolist(), "loc_std": self.model.loc_std.tolist()}
            self.proposal_target_creator = ProposalTargetCreator(**loc)

    def train_step(self, samples, n_sample=None):
        """Take one optimizer step on the mean loss of `samples`, one image at a time.

        With torch.distributed, losses and gradients are summed over the processes, `Stats` are not.

        Args:
            samples: list of `data.Sample` with `rng`; may be empty where other processes have samples.
            n_sample: number of samples in all processes together; None: those given.

        Returns:
            `Losses`, means over the `n_sample` samples; their stats are sums over `samples`.
        """
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        n_sample = n_sample or len(samples)
        mean_losses = self.model.loc_std.new_zeros(5)
        stats = torch.zeros(len(Stats._fields), dtype=torch.int64, device=self.model.device)
        for sample in samples:
            losses = self.compute_losses(sample)
            (losses.total / n_sample).backward()
            mean_losses += torch.stack(losses[:5]).detach() / n_sample
            stats += torch.stack(losses.stats)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(mean_losses)
            for group in self.optimizer.param_groups:
                for param in group["params"]:
                    param.grad = torch.zeros_like(param) if param.grad is None else param.grad
                    torch.distributed.all_reduce(param.grad)
        self.optimizer.step()
        return Losses(*mean_losses, Stats(*stats))

    def compute_losses(self, sample):
        """Prepare a `data.Sample` with a generator and compute its losses; its proposals, if any, replace the RPN's."""
        x, scale = self.model.prepare(sample.img)  # (1, 3, H', W')
        sizes, device = (sample.img.shape[:2], x.shape[2:]), x.device
        bbox, label = upload(resize_bbox(sample.bbox, *sizes), device), upload(sample.label, device)  # (G, 4), (G,)
        roi = None if sample.roi is None else upload(resize_bbox(sample.roi, *sizes), device)  # (R, 4)
        return self.forward(x, bbox, label, scale, sample.rng, roi)

    def forward(self, x, bbox, label, scale, rng, roi=None):
        """Compute the losses of one image, with their graph.

        Args:
            x: (1, 3, H', W') input of the network.
            bbox: (G, 4) ground-truth boxes in its pixels.
            label: (G,) their classes, 0 ... L - 1.
            scale: the resize factor.
            rng: np.random.Generator; both target creators draw from it.
            roi: (R, 4) proposals that replace those of the RPN, or None.

        Returns:
            `Losses`.
        """
        img_size = tuple(x.shape[2:])
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype is not None):
            feature = self.model.extractor(x)  # (1, C, h, w)
            rpn = self.model.rpn(feature, img_size, scale, train=True)
            roi = rpn.roi if roi is None else roi  # (R, 4)
            rpn_loc, rpn_cls, rpn_counts = self.rpn_losses(rpn, bbox, img_size, rng)
            roi_loc, roi_cls, roi_counts = self.head_losses(feature, roi, bbox, label, rng)
        stats = Stats(label.new_ones(()), label.new_full((), len(roi)), *rpn_counts, *roi_counts)
        return Losses(rpn_loc, rpn_cls, roi_loc, roi_cls, rpn_loc + rpn_cls + roi_loc + roi_cls, stats)

    def rpn_losses(self, rpn, bbox, img_size, rng):
        """Compute the losses of the RPN.

        Args:
            rpn: `RPNOutput`.
            bbox: (G, 4) ground-truth boxes.
            img_size: (H', W') of the network's input.
            rng: np.random.Generator.

        Returns:
            loc loss, cls loss, (4,) of `count_correct`.
        """
        target = call_creator(self.anchor_target_creator, bbox, rpn.anchor, img_size, rng)
        losses = self.rpn_loss(rpn.rpn_loc, rpn.rpn_score, target.loc, target.label, self.rpn_sigma)
        return *losses, count_correct(rpn.rpn_score, target.label)

    def head_losses(self, feature, roi, bbox, label, rng):
        """Compute the losses of the RoI head.

        Args:
            feature: (1, C, h, w) feature map.
            roi: (R, 4) proposals.
            bbox, label: (G, 4) ground-truth boxes, (G,) classes 0 ... L - 1.
            rng: np.random.Generator.

        Returns:
            loc loss, cls loss, (5,): those of `count_correct`, and 1 if all RoIs get the same scores, else 0.
        """
        target = call_creator(self.proposal_target_creator, roi, bbox, label, rng)
        gt_label = target.gt_roi_label  # (S,)
        roi_cls_loc, roi_score = self.model.head(feature, target.sample_roi)  # (S, L + 1, 4), (S, L + 1)
        roi_loc = roi_cls_loc[torch.arange(len(gt_label), device=gt_label.device), gt_label.clamp(min=0)]  # (S, 4)
        losses = detection_losses(roi_loc, roi_score, target.gt_roi_loc, gt_label, self.roi_sigma)
        same_score = torch.isclose(roi_score, roi_score[:1], rtol=1e-3).all()  # the feature map is 0, or a layer
        return *losses, torch.cat((count_correct(roi_score, gt_label), same_score[None]))


def detection_losses(loc, score, gt_loc, gt_label, sigma):
    """Compute smooth L1 over positives and cross entropy, each divided by the number of labels >= 0, at least 1.

    This is py-faster-rcnn's normalization; for that of the paper (3.1.2, equation 1) see research/paper_loss.py.

    Args:
        loc, gt_loc: (N, 4) prediction and target of N anchors or RoIs.
        score: (N, classes) logits.
        gt_label: (N,) class, 0 for background, -1 for ignored.
        sigma: smooth L1 is quadratic below 1 / sigma², linear above.

    Returns:
        loc loss and cls loss, scalars.
    """
    n_sample = (gt_label >= 0).sum().clamp(min=1)
    loc_loss = F.smooth_l1_loss(loc, gt_loc, beta=1 / sigma**2, reduction="none").sum(1)  # (N,)
    cls_loss = F.cross_entropy(score, gt_label, ignore_index=-1, reduction="sum")
    return torch.where(gt_label > 0, loc_loss, 0).sum() / n_sample, cls_loss / n_sample


def count_correct(score, label):
    """Return (4,) int64: positives, correct positives, negatives, correct negatives.

    Correct: the argmax of (N, classes) `score` equals the (N,) `label`.
    """
    correct, positive, negative = score.argmax(1) == label, label > 0, label == 0  # (N,)
    return torch.stack((positive, positive & correct, negative, negative & correct)).sum(1)
