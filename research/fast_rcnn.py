"""Fast R-CNN (arXiv 1504.08083) on proposals that come with the data: `--proposals-file`.

The paper's baselines are trained so, on selective search, edge boxes (table 2) or sliding windows (table 10).
"""

from trainer import FasterRCNNTrainer


class FastRCNNTrainer(FasterRCNNTrainer):
    """`FasterRCNNTrainer` that leaves the RPN as it is: the samples carry the proposals."""

    def rpn_losses(self, rpn, bbox, img_size, rng):
        """Return losses of 0, and counts of 0."""
        zero = rpn.rpn_loc.new_zeros(())
        return zero, zero, rpn.rpn_loc.new_zeros(4).long()
