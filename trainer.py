"""One training step: an image in, four losses out (approximate joint training, paper 3.2).

K: anchors. R: proposals. S: sampled RoIs. G: objects in the image. L: classes of objects.
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.utils.anchor_target_creator import AnchorTargetCreator
from model.utils.array import on_arrays
from model.utils.proposal_target_creator import ProposalTargetCreator


class Losses(NamedTuple):
    """The four losses and their sum, on the device."""

    rpn_loc: Tensor
    rpn_cls: Tensor
    roi_loc: Tensor
    roi_cls: Tensor
    total: Tensor


class FasterRCNNTrainer:
    """Computes the losses of `model` and takes optimizer steps.

    Args:
        model: a `FasterRCNN`, on its device.
        anchor_target_creator, proposal_target_creator: None for those of the paper. The latter must normalise locs
            as `model` undoes it.
        rpn_sigma, roi_sigma: where the smooth L1 loss turns linear, at 1 / sigma² (py-faster-rcnn: 3 and 1).
        lr, momentum, weight_decay: of SGD (3.1.3). Biases learn at twice the rate, without decay.
        dtype: torch.bfloat16 runs the layers under autocast; boxes and losses stay float32. None: no autocast.
        add_up: called with the losses and all gradients of a step, to replace each tensor by its sum over several
            processes; None where there is one.
        watch: called in each step with what figures about training need, all on the device: with "proposal" and the
            (R, 4) boxes, with "rpn" and "roi" and (N, classes) logits and (N,) labels, -1 for what does not count.
        guard: called with the (5,) mean losses and the optimizer before each update, which it may have left out.
    """

    def __init__(self, model, anchor_target_creator=None, proposal_target_creator=None, rpn_sigma=3.0, roi_sigma=1.0,
                 lr=1e-3, momentum=0.9, weight_decay=5e-4, dtype=None, add_up=None, watch=lambda *seen: None,
                 guard=lambda losses, optimizer: None):
        self.model = model
        self.anchor_target_creator = anchor_target_creator or AnchorTargetCreator()
        self.proposal_target_creator = proposal_target_creator or ProposalTargetCreator()
        self.rpn_sigma = rpn_sigma
        self.roi_sigma = roi_sigma
        self.dtype = dtype
        self.add_up = add_up
        self.watch = watch
        self.guard = guard
        trained = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
        weights = [param for name, param in trained if not name.endswith("bias")]
        biases = [param for name, param in trained if name.endswith("bias")]
        self.optimizer = torch.optim.SGD(
            [{"params": weights, "weight_decay": weight_decay}, {"params": biases, "weight_decay": 0.0}],
            lr=lr, momentum=momentum, fused=True)
        self.set_lr(lr)

    def set_lr(self, lr):
        """Sets the learning rate of the weights, and twice that of the biases (py-faster-rcnn)."""
        weights, biases = self.optimizer.param_groups
        weights["lr"], biases["lr"] = lr, 2 * lr

    def train_step(self, samples, n_sample=None):
        """One optimizer step on the mean loss of `samples` (img, bbox, label, scale, rng), one image at a time.

        Args:
            samples: list; may be empty where other processes have some.
            n_sample: how many there are in all processes together; None: as many as here.

        Returns:
            `Losses`, their means over all samples.
        """
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        n_sample = n_sample or len(samples)
        total = self.model.loc_std.new_zeros(5)
        for sample in samples:
            losses = self.step(sample)
            (losses.total / n_sample).backward()
            total += torch.stack(losses).detach() / n_sample  # (5,)
        if self.add_up:
            params = [param for group in self.optimizer.param_groups for param in group["params"]]
            for param in params:
                param.grad = torch.zeros_like(param) if param.grad is None else param.grad
            self.add_up([total, *(param.grad for param in params)])
        self.guard(total, self.optimizer)
        self.optimizer.step()
        return Losses(*total)

    def step(self, sample):
        """The losses of one sample, with their graph.

        Args:
            sample: has img (1, 3, H, W), bbox (G, 4) in its pixels, label (G,) in 0 ... L - 1, scale (the resize
                factor) and rng (np.random.Generator, from which both creators draw).

        Returns:
            `Losses`.
        """
        with torch.autocast(sample.img.device.type, self.dtype, enabled=self.dtype is not None):
            img_size = tuple(sample.img.shape[2:])
            feature = self.model.extractor(sample.img)  # (1, 512, h, w)
            rpn = self.model.rpn(feature, img_size, sample.scale, train=True)
            self.watch("proposal", rpn.roi)
            rpn_loc, rpn_cls = self.rpn_losses(rpn, sample.bbox, img_size, sample.rng)
            roi_loc, roi_cls = self.head_losses(feature, rpn.roi, sample.bbox, sample.label, sample.rng)
            return Losses(rpn_loc, rpn_cls, roi_loc, roi_cls, rpn_loc + rpn_cls + roi_loc + roi_cls)

    def rpn_losses(self, rpn, bbox, img_size, rng):
        """The RPN's two losses: `RPNOutput`, (G, 4) objects, (H, W), generator -> loc, cls."""
        target = on_arrays(self.anchor_target_creator, bbox, rpn.anchor, img_size, rng)
        self.watch("rpn", rpn.rpn_score, target.label)
        return _losses(rpn.rpn_loc, rpn.rpn_score, target.loc, target.label, self.rpn_sigma)

    def head_losses(self, feature, roi, bbox, label, rng):
        """The head's two losses: feature map, (R, 4) proposals, (G, 4), (G,) objects, generator -> loc, cls."""
        target = on_arrays(self.proposal_target_creator, roi, bbox, label, rng)
        roi_cls_loc, roi_score = self.model.head(feature, target.sample_roi)  # (S, L + 1, 4), (S, L + 1)
        gt_label = target.gt_roi_label
        self.watch("roi", roi_score, gt_label)
        row = torch.arange(len(gt_label), device=gt_label.device)
        roi_loc = roi_cls_loc[row, gt_label.clamp(min=0)]  # (S, 4), of its own class
        return _losses(roi_loc, roi_score, target.gt_roi_loc, gt_label, self.roi_sigma)


def _losses(loc, score, gt_loc, gt_label, sigma):
    """Smooth L1 over the positives and cross entropy, each divided by the number of labels >= 0, at least 1.

    Args:
        loc, gt_loc: (N, 4) prediction and target, N anchors or RoIs.
        score: (N, classes) logits.
        gt_label: (N,) class, 0 for the background, -1 for what does not count.
        sigma: the loss of locs is quadratic below 1 / sigma², linear above.
    """
    n_sample = (gt_label >= 0).sum().clamp(min=1)
    loc_loss = F.smooth_l1_loss(loc, gt_loc, beta=1 / sigma**2, reduction="none").sum(1)  # (N,)
    cls_loss = F.cross_entropy(score, gt_label, ignore_index=-1, reduction="sum")
    return torch.where(gt_label > 0, loc_loss, 0).sum() / n_sample, cls_loss / n_sample
