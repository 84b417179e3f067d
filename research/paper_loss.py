"""The RPN's loss as the paper states it (section 3.1.2, equation 1), instead of py-faster-rcnn's: `--rpn-lambda`.

The classification term is averaged over the sampled anchors, the regression term over the positions of anchors, about
2400; lambda = 10 makes the two weigh alike, and table 9 (4.1) compares 0.1, 1, 10 and 100. py-faster-rcnn averages both
over the sampled anchors. Anchors per position: 9 in the paper.
"""

from trainer import detection_losses


def paper_losses(loc, score, gt_loc, gt_label, sigma, rpn_lambda=10.0, n_anchor=9):
    """Compute loc and cls loss of the RPN for one image.

    Args:
        loc, score, gt_loc, gt_label, sigma: see `detection_losses`; rows are all anchors of the image.
        rpn_lambda: lambda of equation 1.
        n_anchor: anchors per position.

    Returns:
        loc loss, multiplied by `rpn_lambda`, and cls loss, scalars.
    """
    loc_loss, cls_loss = detection_losses(loc, score, gt_loc, gt_label, sigma)
    n_sample, n_position = (gt_label >= 0).sum(), len(loc) / n_anchor
    return loc_loss * n_sample * (rpn_lambda / n_position), cls_loss
