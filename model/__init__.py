"""The network and its parts: `build` makes one, `restore` reads one from a checkpoint.

A backbone is a file beside this one. It states `build`, whose parameters are options by name, with `n_fg_class`,
`pretrained` and `preprocessing` (and `name`, if the file lists several `NAMES`), and `TRAINING`, its own values of the
options of training. The defaults of `build` are those for random weights; `defaults(name, pretrained)`, if it is there,
returns those that depend on name or weights. Its head has the layers `cls_loc` and `score`, which `--reset-head`
initializes.
"""

import importlib
import inspect
import pkgutil

from model.utils.preprocess import BY_NAME, Preprocessing


class WeightsError(ValueError):
    """Pretrained weights cannot be fetched or read; the message says what to do."""


def find_backbone(name):
    """Return the module that builds `name`: model/NAME.py, or the sibling whose `NAMES` holds it."""
    siblings = [importlib.import_module(f"model.{module.name}") for module in pkgutil.iter_modules(__path__)]
    modules = [(module, module.__name__.removeprefix("model.")) for module in siblings if hasattr(module, "build")]
    named = {each: module for module, file in modules for each in getattr(module, "NAMES", [file])}
    if name not in named:
        raise ValueError(f"there is no backbone {name!r} (--model): choose one of {', '.join(named)}")
    return named[name]


def build(name="vgg16", preprocessing=None, **kwargs):
    """Build the `FasterRCNN` on the backbone `name`.

    Args:
        name: see `find_backbone`.
        preprocessing: replaces that of the weights: the four values of a `Preprocessing`, or a name of `BY_NAME`.
        kwargs: options of its module's `build`; those that are None or missing have the values of `defaults`.
    """
    module = find_backbone(name)
    options = module.defaults(name, kwargs.get("pretrained")) if hasattr(module, "defaults") else {}
    options |= {option: value for option, value in kwargs.items() if value is not None}
    if preprocessing:
        named = isinstance(preprocessing, str)
        options["preprocessing"] = BY_NAME[preprocessing] if named else Preprocessing(*preprocessing)
    own_name = {"name": name} if hasattr(module, "NAMES") else {}
    return module.build(**own_name, **options)


def defaults(name="vgg16", pretrained="imagenet"):
    """Return the values of options that the backbone `name` prefers: option name -> value.

    These are the defaults of its `build`, its `TRAINING`, and what its own `defaults`, if any, returns.
    """
    module = find_backbone(name)
    parameters = inspect.signature(module.build).parameters.values()
    own = {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}
    return own | module.TRAINING | (module.defaults(name, pretrained) if hasattr(module, "defaults") else {})


def fetch_weights(pretrained, known):
    """Download the state that `--pretrained=NAME` means.

    Args:
        pretrained: NAME.
        known: NAME -> entry of one of torchvision's enumerations of weights.

    Raises:
        WeightsError: there is no such name, or the file cannot be fetched.
    """
    if pretrained not in known:
        raise WeightsError(f"--pretrained={pretrained} is neither a file nor one of {', '.join(known)} and none")
    try:
        return known[pretrained].get_state_dict(progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # no network, a partial or wrong file, more than tensors
        reason = str(error).partition("\n")[0]
        what = f"--pretrained={pretrained}: {known[pretrained].url} cannot be fetched ({reason})"
        advice = "fetch that file elsewhere and pass --pretrained=FILE or --pretrained=none"
        raise WeightsError(f"{what}; {advice}") from None


def load_state(module, state, given, owner):
    """Load `state`, the part of the pretrained weights `given` that `module` has.

    Raises:
        WeightsError: it does not fit: `given` are not the weights of `owner`.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError:
        raise WeightsError(f"the weights {list(given)[:4]} ... are not those of {owner}") from None


def restore(checkpoint):
    """Build the `FasterRCNN` that a checkpoint describes (a dict, see utils/checkpoint.py) and load its weights."""
    model = build(**checkpoint["build"], preprocessing=checkpoint["preprocessing"])
    model.load_state_dict(checkpoint["model"])
    return model
