"""Non-approximate joint training (paper 3.2, solution iii): `--joint=non-approximate`.

The head's losses depend on the RPN in two ways: through the shared convolutions, and through the coordinates of the
proposals. Approximate joint training drops the second. Here it is kept: the head sees RoIs that are functions of
the RPN's locs, through RoI warping, which has a gradient with respect to the box (model/utils/roi_warping.py). The
targets of the RoIs are constants, as in Dai et al. 2016 (arXiv 1512.04412).

K: anchors. R: proposals. S: sampled RoIs.
"""

import torch

from model.utils.array_tool import call_creator
from model.utils.bbox_tools import clip_bbox, loc2bbox
from trainer import FasterRCNNTrainer


class NonApproximateTrainer(FasterRCNNTrainer):
    """`FasterRCNNTrainer` whose head losses also reach the RPN's locs; the head's RoI operation must be `roi_warp`."""

    def forward(self, *args):
        """Compute the losses of one image, with proposals that carry a gradient; see `FasterRCNNTrainer.forward`."""
        with self.model.rpn.register_forward_hook(decode_again):
            return super().forward(*args)

    def head_losses(self, feature, roi, bbox, label, rng):
        """Compute the losses of the RoI head; its RoIs, but not their targets, carry the gradient of `roi` (R, 4)."""
        with self.model.head.register_forward_pre_hook(lambda head, args: (args[0], with_gradient(args[1], roi))):
            return super().head_losses(feature, roi, bbox, label, rng)


def decode_again(rpn, args, output):
    """Return the RPN's `output` with proposals of the same values that are functions of `rpn_loc`.

    A forward hook of `RegionProposalNetwork`; `args` are those of its forward.
    """
    _, img_size, scale = args

    def select(loc, score, anchor):
        roi = clip_bbox(loc2bbox(anchor, loc), img_size)  # (K, 4)
        return rpn.proposal_creator.select(roi, score, scale, train=True)

    index = call_creator(select, output.rpn_loc, output.fg_score, output.anchor)  # (R,) the surviving anchors
    roi = clip_bbox(loc2bbox(output.anchor[index], output.rpn_loc[index]), img_size)  # (R, 4), with gradient
    return output._replace(roi=output.roi + (roi - roi.detach()))  # what is added is 0


def with_gradient(sample_roi, roi):
    """Return `sample_roi` (S, 4) with the gradient of those rows of `roi` (R, 4) that it repeats.

    The others are ground-truth boxes, which are constants.
    """
    candidate = torch.cat((roi, sample_roi))  # (R + S, 4)
    equal = (sample_roi[:, None] == candidate).all(2)  # (S, R + S)
    return candidate[equal.byte().argmax(1)]  # (S, 4), the first that is equal
