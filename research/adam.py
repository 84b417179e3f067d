"""Adam (Kingma and Ba 2015, arXiv 1412.6980) in place of the paper's SGD: `--optimizer=adam`."""

import warnings

import torch

USUAL_LR = 1e-4  # a step of Adam is about as long as its rate, whatever the gradient (Kingma and Ba, 2.1)


def to_adam(sgd):
    """Return Adam for the groups of the optimizer `sgd`, with their rates and weight decays; warn about a high rate."""
    groups = [{name: group[name] for name in ("params", "lr", "weight_decay", "lr_mult")} for group in sgd.param_groups]
    if (lr := groups[0]["lr"]) > USUAL_LR:
        what = f"--lr={lr:g} is a rate for SGD: Adam moves every weight by about that much in each step"
        warnings.warn(f"{what}. Start from --lr={USUAL_LR:g}, with pretrained weights from 1e-5", stacklevel=2)
    return torch.optim.Adam(groups, fused=True)
