"""The network and its parts: `build` makes one, `restore` reads one from a checkpoint.

A backbone is a file beside this one. It states `build`, whose parameters are options by name, with `n_fg_class`,
`pretrained` and `preprocessing` (and `name`, if the file lists several `NAMES`), and `TRAINING`, its own values of the
options of training. Its head has the layers `cls_loc` and `score`, which `--reset-head` initializes.
"""

import importlib
import inspect
import pkgutil


class WeightsError(ValueError):
    """Pretrained weights cannot be fetched or read; the message says what to do."""


def find_backbone(name):
    """Return the module that builds `name`: model/NAME.py, or the sibling whose `NAMES` holds it."""
    siblings = [module.name for module in pkgutil.iter_modules(__path__)]
    if name in siblings and hasattr(module := importlib.import_module(f"model.{name}"), "build"):
        return module
    modules = [importlib.import_module(f"model.{sibling}") for sibling in siblings]
    if found := [module for module in modules if name in getattr(module, "NAMES", ())]:
        return found[0]
    known = [module.__name__.removeprefix("model.") for module in modules if hasattr(module, "build")]
    raise ValueError(f"there is no backbone {name!r} (--model): choose a file of model/, such as {', '.join(known)}")


def build(name="vgg16", **kwargs):
    """Build the `FasterRCNN` on the backbone `name`; `kwargs` are those of its module's `build`."""
    module = find_backbone(name)
    own_name = {"name": name} if hasattr(module, "NAMES") else {}
    return module.build(**own_name, **kwargs)


def defaults(name="vgg16", pretrained="imagenet"):
    """Return the values of options that the backbone `name` prefers: option name -> value.

    These are the defaults of its `build` and its `TRAINING`; without pretrained weights no layer is frozen.
    """
    module = find_backbone(name)
    parameters = inspect.signature(module.build).parameters.values()
    own = {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}
    return own | module.TRAINING | ({"frozen_convs": 0} if pretrained == "none" else {})


def restore(checkpoint):
    """Build the `FasterRCNN` that a checkpoint describes (a dict, see utils/checkpoint.py) and load its weights."""
    model = build(**checkpoint["build"], preprocessing=checkpoint["preprocessing"])
    model.load_state_dict(checkpoint["model"])
    return model
