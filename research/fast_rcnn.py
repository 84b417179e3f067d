"""The two halves of Faster R-CNN trained apart: the RPN alone (paper 3.1.3), and Fast R-CNN (arXiv 1504.08083) on
proposals that come with the data (`data.Sample.roi`): `--proposals-file`.

The paper's baselines are Fast R-CNN on selective search or edge boxes (4.1, table 2), or on sliding windows (table 10).

C: channels of the feature map; h, w: its sides. R: proposals.
"""

import torch

from model.rpn import RPNOutput
from trainer import FasterRCNNTrainer, Losses, Stats


class RPNTrainer(FasterRCNNTrainer):
    """Train extractor and RPN; the head is not run, and its losses are 0."""

    def forward(self, x, bbox, label, scale, rng, roi=None):
        """Compute the losses of the RPN for one image; `label`, `scale` and `roi` are not used."""
        img_size, rpn = tuple(x.shape[2:]), self.model.rpn
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype is not None):
            feature = self.model.extractor(x)  # (1, C, h, w)
            output = RPNOutput(*rpn.head(feature), None, None, rpn.anchors(feature, img_size))  # nothing is proposed
            loc_loss, cls_loss, counts = self.rpn_losses(output, bbox, img_size, rng)
        zero = torch.zeros_like(loc_loss)
        rest = counts.new_zeros(len(Stats._fields) - 2 - len(counts))
        stats = Stats(counts.new_ones(()), counts.new_zeros(()), *counts, *rest)
        return Losses(loc_loss, cls_loss, zero, zero, loc_loss + cls_loss, stats)


class FastRCNNTrainer(FasterRCNNTrainer):
    """Train extractor and head on proposals that are given; the RPN is not run, and its losses are 0."""

    def forward(self, x, bbox, label, scale, rng, roi):
        """Compute the losses of the head for one image with the proposals `roi` (R, 4); `scale` is not used."""
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype is not None):
            feature = self.model.extractor(x)  # (1, C, h, w)
            loc_loss, cls_loss, counts = self.head_losses(feature, roi, bbox, label, rng)
        zero = torch.zeros_like(loc_loss)
        rest = counts.new_zeros(len(Stats._fields) - 2 - len(counts))
        stats = Stats(counts.new_ones(()), counts.new_full((), len(roi)), *rest, *counts)
        return Losses(zero, zero, loc_loss, cls_loss, loc_loss + cls_loss, stats)
