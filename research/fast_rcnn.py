"""Fast R-CNN (arXiv 1504.08083) on proposals that come with the data (`data.Sample.roi`): `--proposals-file`.

The paper's baselines are trained so: on selective search or edge boxes (table 2), or on sliding windows (table 10).

C: channels of the feature map; h, w: its sides. R: proposals.
"""

import torch

from trainer import FasterRCNNTrainer, Losses, Stats


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
