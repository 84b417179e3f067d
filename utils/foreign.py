"""Weights that other programs wrote, under our names: whole detectors, and bare VGG16 classifiers.

A layout is recognised by the names of its tensors. What a file lacks is said, never guessed.

A: anchors at a cell. L: classes of objects. F: width of fc6 and fc7.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch

# conv1_1 ... conv5_3, their place in torchvision's `features` (and in ours), and their channels
_CONVS = tuple(f"conv{block}_{i}" for block, n in ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3)) for i in range(1, n + 1))
_PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_CHANNELS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
_N_ANCHOR = 9  # of both detectors: scales 8, 16, 32 and ratios 0.5, 1, 2


class LayoutError(ValueError):
    """Tensors are not those of a layout; the message goes on where the name of the file ended."""


class _Layout(NamedTuple):
    """How a program names its tensors."""

    program: str
    modules: dict  # our name of a module -> theirs
    kinds: tuple[str, str]  # what follows the name of a module: weight, bias
    preprocessing: str | None  # what its weights want, a name of model.utils.preprocess; None: does not follow
    optional: tuple = ()  # our names of modules that a file may lack

    def names(self, module):
        """Our names of the weight and the bias of a module, and theirs."""
        return [(f"{module}.{ours}", self.modules[module] + kind)
                for ours, kind in zip(("weight", "bias"), self.kinds, strict=True)]


def _detector(program, extractor, fc6, fc7, separator, kinds, preprocessing):
    modules = {f"extractor.{place}": name for place, name in zip(_PLACES, extractor, strict=True)}
    modules |= {"rpn.conv": f"rpn{separator}conv1", "head.fc6": fc6, "head.fc7": fc7}
    modules |= {f"{part}.{name}": f"{part}{separator}{name}"
                for part, name in (("rpn", "score"), ("rpn", "loc"), ("head", "cls_loc"), ("head", "score"))}
    return _Layout(program, modules, kinds, preprocessing)


def _classifier(program, convs, fc6, fc7, kinds, preprocessing):
    modules = {f"features.{place}": name for place, name in zip(_PLACES, convs, strict=True)}
    modules |= {"classifier.0": fc6, "classifier.3": fc7}  # torchvision's names, which model/vgg16.py reads
    return _Layout(program, modules, kinds, preprocessing, ("classifier.0", "classifier.3"))


_TORCH, _CHAINER = (".weight", ".bias"), ("/W", "/b")
_SIMPLE = [f"extractor.{place}" for place in _PLACES]
_DETECTORS = (
    _detector("simple-faster-rcnn-pytorch", _SIMPLE, "head.classifier.0", "head.classifier.2", ".", _TORCH, None),
    # trained with dropout, whose layers move fc7
    _detector("simple-faster-rcnn-pytorch", _SIMPLE, "head.classifier.0", "head.classifier.3", ".", _TORCH, None),
    _detector("chainercv", [f"extractor/{name}/conv" for name in _CONVS], "head/fc6", "head/fc7", "/", _CHAINER,
              "chainercv"),
)
_CLASSIFIERS = (
    _classifier("torchvision", [f"features.{i}" for i in _PLACES], "classifier.0", "classifier.3", _TORCH, None),
    _classifier("Caffe", _CONVS, "fc6", "fc7", _TORCH, "caffe"),
    _classifier("Caffe, through Chainer", _CONVS, "fc6", "fc7", _CHAINER, "caffe"),
    _classifier("chainercv", [f"{name}/conv" for name in _CONVS], "fc6", "fc7", _CHAINER, "chainercv"),
)


def as_checkpoint(state: Mapping) -> dict:
    """Bring the detector of another program into the form of our checkpoints, without what only resuming needs.

    Args:
        state: what its file holds, tensors by name; simple-faster-rcnn-pytorch's may be inside "model".

    Returns:
        A dict with the keys of utils/checkpoint.py, without "format", and "layout", the program. "preprocessing"
        is a name of model.utils.preprocess, `None` where the file does not say; "class_names" and "config" are
        empty.

    Raises:
        LayoutError: these are no such weights, one is missing, one too many, or one has another shape.
    """
    inner = state.get("model")
    tensors = inner if isinstance(inner, Mapping) else state
    if tensors and all(str(name).startswith("module.") for name in tensors):  # trained inside nn.DataParallel
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    layout = _find(tensors, _DETECTORS)
    if layout is None:
        bare = _find(tensors, _CLASSIFIERS)
        if bare:
            raise LayoutError(f"is a bare VGG16 in the layout of {bare.program}: give it as --pretrained")
        raise LayoutError(
            f"is no detector that this library knows: it holds {_some(state)}; wanted is a checkpoint of its own "
            "('format', 'model', 'build' ...), of simple-faster-rcnn-pytorch ('extractor.0.weight', 'rpn.conv1.weight' "
            "...) or of chainercv's FasterRCNNVGG16 ('extractor/conv1_1/conv/W', 'rpn/conv1/W' ...)")
    model = _rename(tensors, layout)
    for name, value in model.items():
        if not value.isfinite().all():
            raise LayoutError(f"has the layout of {layout.program}, but a number of {name!r} is not finite")
    width, n_class = model["head.fc6.bias"].numel(), model["head.score.bias"].numel()
    _check_shapes(model, layout, _shapes("extractor") | {
        "rpn.conv": (512, 512, 3, 3), "rpn.score": (2 * _N_ANCHOR, 512, 1, 1), "rpn.loc": (4 * _N_ANCHOR, 512, 1, 1),
        "head.fc6": (width, 512 * 7 * 7), "head.fc7": (width, width),
        "head.cls_loc": (4 * n_class, width), "head.score": (n_class, width)})
    if n_class < 2:
        raise LayoutError(f"has the layout of {layout.program}, but scores for {n_class} classes with the background")
    build = {"name": "vgg16", "n_fg_class": n_class - 1, "head_width": width, "anchor_scales": (8, 16, 32),
             "anchor_ratios": (0.5, 1, 2), "min_size": 600, "max_size": 1000}
    preprocessing = layout.preprocessing
    options = state.get("config")
    if layout.program == "chainercv":
        build["ceil_mode"] = True  # Chainer's pooling keeps half a cell at a border (see its cover_all)
    elif isinstance(options, Mapping):
        if "caffe_pretrain" in options:
            preprocessing = "caffe-rgb-mean" if options["caffe_pretrain"] else "torchvision"
        sizes = {name: options.get(name) for name in ("min_size", "max_size")}
        build |= {name: size for name, size in sizes.items() if isinstance(size, int)}
    return {"model": model, "build": build, "class_names": [], "preprocessing": preprocessing, "config": {},
            "epoch": None, "step": None, "layout": layout.program}


def as_backbone(state: Mapping) -> dict:
    """Bring a VGG16 classifier into torchvision's names.

    Args:
        state: what its file holds, tensors by name.

    Returns:
        "model": features.0.weight ... features.28.bias and, where the file has them, classifier.0 (fc6) and
        classifier.3 (fc7); "preprocessing": a name of model.utils.preprocess or None; "layout": the program.

    Raises:
        LayoutError: as above.
    """
    layout = _find(state, _CLASSIFIERS)
    if layout is None:
        if "format" in state or _find(state, _DETECTORS) or isinstance(state.get("model"), Mapping):
            raise LayoutError("is a whole detector: give it as --load-path")
        wanted = ", ".join(f"{layout.names('features.0')[0][1]!r} ({layout.program})" for layout in _CLASSIFIERS)
        raise LayoutError(f"is no VGG16: it holds {_some(state)}, the first of its tensors should be {wanted}")
    theirs = {their for module in layout.modules for _, their in layout.names(module)}
    model = _rename({name: value for name, value in state.items() if name in theirs}, layout)  # fc8 stays behind
    fc = {"classifier.0": (4096, 512 * 7 * 7), "classifier.3": (4096, 4096)}
    _check_shapes(model, layout, _shapes("features") | {name: shape for name, shape in fc.items()
                                                        if f"{name}.weight" in model})
    return {"model": model, "preprocessing": layout.preprocessing, "layout": layout.program}


def _find(tensors, layouts):
    """The layout of which `tensors` hold the most names, at least half of them; None if there is no such."""
    def n_found(layout):
        return sum(their in tensors for module in layout.modules for _, their in layout.names(module))

    best = max(layouts, key=n_found)
    return best if n_found(best) >= len(best.modules) else None  # a module has two names


def _rename(tensors, layout):
    """The tensors under our names, in float32; each must be there, and no other."""
    pairs = [pair for module in layout.modules for pair in layout.names(module)
             if module not in layout.optional or layout.names(module)[0][1] in tensors]
    missing = [their for _, their in pairs if their not in tensors]
    extra = sorted(map(str, set(tensors) - {their for _, their in pairs}))
    for names, word in ((missing, "lacks"), (extra, "also holds")):
        if names:
            raise LayoutError(f"has the layout of {layout.program}, but {word} {_some(names)}")
    for _, their in pairs:
        value = tensors[their]
        if not (isinstance(value, torch.Tensor) and value.is_floating_point() and value.layout == torch.strided):
            raise LayoutError(f"has the layout of {layout.program}, but {their!r} is no tensor of fractions")
    return {ours: tensors[their].float() for ours, their in pairs}


def _shapes(part):
    return {f"{part}.{place}": (out, channels, 3, 3)
            for place, channels, out in zip(_PLACES, _CHANNELS, _CHANNELS[1:], strict=False)}


def _check_shapes(model, layout, shapes):
    for module, shape in shapes.items():
        for (name, their), wanted in zip(layout.names(module), (shape, shape[:1]), strict=True):
            if tuple(model[name].shape) != wanted:
                raise LayoutError(f"has the layout of {layout.program}, but {their!r} has the shape "
                                  f"{tuple(model[name].shape)}, wanted is {wanted}")


def _some(names):
    """The first names of many, for a message."""
    names = list(names)
    return ", ".join(map(repr, names[:4])) + (f" and {len(names) - 4} more" if len(names) > 4 else "") or "nothing"
