"""Whether what a checkpoint says of its network can be: values that the options of a training could have had.

A file that loads without running code may still hold nonsense, by accident or on purpose.
"""
import math
import warnings

import torch

from utils.checkpoint import CheckpointError, load_weights
from utils.config import OptionError, TrainConfig, check_stored

_PROPOSAL = {"nms_thresh": "rpn_nms_thresh", "min_size": "rpn_min_size"}  # options that have another name there
_PROPOSAL |= {name: name for name in ("n_train_pre_nms", "n_train_post_nms", "n_test_pre_nms", "n_test_post_nms")}
_BUILD = {name: name for name in ("head_width", "dropout", "min_size", "max_size", "anchor_scales", "anchor_ratios")}


def check_described(path, checkpoint, build):
    """Raises CheckpointError unless a network can be made as a checkpoint of ours says, and its weights fit.

    Args:
        path: where it was read.
        checkpoint: the dictionary, see utils/checkpoint.py.
        build: makes a network, see model/__init__.py; here it takes no memory.
    """
    try:
        _check_build(**checkpoint["build"])
        _check_preprocessing(*checkpoint["preprocessing"])
        _demand(all(isinstance(name, str) and name.isprintable() for name in checkpoint["class_names"]),
                "'class_names' are no names")
        _demand(all(type(checkpoint[name]) is int and checkpoint[name] >= 0 for name in ("epoch", "step")),
                "'epoch' or 'step' is no number of them")
        known = TrainConfig.__dataclass_fields__.keys()  # an option of another version does no harm
        check_stored(TrainConfig, {name: _tuple(value) for name, value in checkpoint["config"].items()
                                   if name in known})
        _demand(all(isinstance(value, torch.Tensor) and value.is_floating_point() and value.layout == torch.strided
                    for value in checkpoint["model"].values()), "'model' holds more than tensors of fractions")
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nothing is copied
            load_weights(build(**checkpoint["build"], preprocessing=checkpoint["preprocessing"]), checkpoint, path)
    except CheckpointError:
        raise
    except Exception as error:  # nonsense trips the parts of a network in many ways
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} does not describe a network ({reason}): it was not written by this library, or "
                              "changed since; take another copy") from error


def _check_build(n_fg_class, head_width, name="vgg16", proposal=None, **options):
    """Raises for a value of "build" that no training could have written."""
    stored = {}
    for values, names in ((options | {"head_width": head_width}, _BUILD), (proposal or {}, _PROPOSAL)):
        for key, value in values.items():
            _demand(key in names, f"there is no {key!r} in a network")
            stored[names[key]] = _tuple(value)
    check_stored(TrainConfig, stored)


def _check_preprocessing(mean, std, value_range, channel_order):
    """Raises for what no image can be normalised with."""
    numbers = [*mean, *std, value_range]
    fine = len(mean) == len(std) == 3 and all(type(number) in (int, float) and math.isfinite(number)
                                              for number in numbers)
    _demand(fine and min(*std, value_range) > 0 and channel_order in ("RGB", "BGR"), "its 'preprocessing' is none")


def _tuple(value):
    return tuple(value) if isinstance(value, list) else value


def _demand(fine, otherwise):
    if not fine:
        raise OptionError(otherwise)
