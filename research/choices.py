"""The values of options of train.py that stand for the files of this folder."""

from functools import partial

from research.adam import to_adam
from research.non_approximate import NonApproximateTrainer
from research.padded import PaddedTrainer
from research.paper_loss import paper_losses
from trainer import FasterRCNNTrainer

# values of --joint and --batching
TRAINERS = {"approximate": FasterRCNNTrainer, "non-approximate": NonApproximateTrainer, "padded": PaddedTrainer}
OPTIMIZERS = {"sgd": lambda sgd: sgd, "adam": to_adam}  # values of --optimizer


def rpn_loss(rpn, rpn_lambda):
    """Return the loss of `rpn` for `--rpn-lambda`; None, that of trainer.py, if it is None."""
    if rpn_lambda is None:
        return None
    return partial(paper_losses, rpn_lambda=rpn_lambda, n_anchor=rpn.anchor_base.shape[-2])  # (A, 4), or per level
