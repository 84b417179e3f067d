"""The network and its parts. `build` makes one, `restore` brings one back from a checkpoint."""
import importlib

BACKBONES = ("vgg16",)


class WeightsError(ValueError):
    """Pretrained weights could not be fetched or read; the message says what to do."""


def build(name="vgg16", **options):
    """The `FasterRCNN` on the backbone `name`; `options` are those of its module's own `build`."""
    if name not in BACKBONES:
        raise ValueError(f"no backbone is called {name!r}: choose from {', '.join(BACKBONES)}")
    return importlib.import_module(f"model.{name}").build(**options)


def restore(checkpoint):
    """The `FasterRCNN` that a checkpoint (a dictionary, see utils/checkpoint.py) describes, with its weights."""
    model = build(**checkpoint["build"], preprocessing=checkpoint["preprocessing"])
    model.load_state_dict(checkpoint["model"])
    return model
