"""Convert the weights of other programs to the names of this library: whole detectors and VGG16 classifiers.

A layout is recognised by the name of one tensor; names and shapes are checked when the weights are loaded into a
network.
"""

# conv1_1 ... conv5_3 and their indices in torchvision's `features`, which are those of our extractor
_INDICES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_CONVS = {f"conv{block}_{i}" for block, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)}
_CONVS = dict(zip(sorted(_CONVS), _INDICES, strict=True))

# names of modules, with dots: theirs -> ours; other names stay as they are
_DETECTOR_NAMES = {f"extractor.{conv}.conv": f"extractor.{i}" for conv, i in _CONVS.items()}
_DETECTOR_NAMES |= {"rpn.conv1": "rpn.conv", "head.classifier.0": "head.fc6"}
_DETECTOR_NAMES |= {f"head.classifier.{i}": "head.fc7" for i in (2, 3)}  # without and with dropout layers
_CLASSIFIER_NAMES = {conv + suffix: f"features.{i}" for conv, i in _CONVS.items() for suffix in ("", ".conv")}
_CLASSIFIER_NAMES |= {"fc6": "classifier.0", "fc7": "classifier.3"}
_PARAMETERS = {"W": "weight", "b": "bias"}

# a tensor of the layout -> program, and the preprocessing that its weights expect, a name of model.utils.preprocess
_DETECTORS = {"rpn.conv1.weight": ("simple-faster-rcnn-pytorch", None), "rpn/conv1/W": ("chainercv", "chainercv")}
_CLASSIFIERS = {
    "features.0.weight": ("torchvision", None),
    "conv1_1.weight": ("Caffe", "caffe"),
    "conv1_1/W": ("Caffe, through Chainer", "caffe"),
    "conv1_1/conv/W": ("chainercv", "chainercv"),
}
_ANCHORS, _SIZES = {"anchor_scales": (8, 16, 32), "anchor_ratios": (0.5, 1, 2)}, {"min_size": 600, "max_size": 1000}


def convert_detector(state: dict) -> dict:
    """Convert the detector of another program to the form of our checkpoints.

    Args:
        state: content of its file, tensors by name; simple-faster-rcnn-pytorch puts them into "model".

    Returns:
        A checkpoint as `utils.checkpoint.load_checkpoint` returns it, with "layout", the program, instead of "format";
        "preprocessing" is None where the file does not tell.

    Raises:
        ValueError: The names are not those of a known detector.
        KeyError: The last layers are missing.
    """
    tensors = _tensors(state)
    program, preprocessing = _find(tensors, _DETECTORS)
    if "rpn.conv.weight" in tensors:
        raise ValueError("it holds weights of this library alone: name last.pth or best.pth, which say their classes")
    if program is None:
        if classifier := _find(tensors, _CLASSIFIERS)[0]:
            raise ValueError(f"it is a VGG16 classifier in the layout of {classifier}: give it as --pretrained")
        raise ValueError(f"it holds {_some(tensors)}, neither 'format' (this library) nor {_some(_DETECTORS)} (others)")
    model = _rename(tensors, _DETECTOR_NAMES)
    n_class, head_width = (model[f"head.{layer}.bias"].numel() for layer in ("score", "fc6"))
    build = {"name": "vgg16", "n_fg_class": n_class - 1, "head_width": head_width} | _ANCHORS | _SIZES
    options = state.get("config")
    if program == "chainercv":
        build["ceil_mode"] = True  # Chainer's pooling keeps half a cell at the border (cover_all)
    elif isinstance(options, dict):
        if "caffe_pretrain" in options:
            preprocessing = "caffe-rgb-mean" if options["caffe_pretrain"] else "torchvision"
        build |= {name: options[name] for name in _SIZES if isinstance(options.get(name), int)}
    empty = {"class_names": [], "config": {}, "epoch": None, "step": None}
    return empty | {"model": model, "build": build, "preprocessing": preprocessing, "layout": program}


def convert_backbone(state: dict) -> dict:
    """Convert a VGG16 classifier to torchvision's names; leave the weights of other backbones as they are.

    Args:
        state: content of a file, tensors by name.

    Returns:
        "model": tensors by name; "preprocessing": a name of model.utils.preprocess or None; "layout": the program.

    Raises:
        ValueError: It is a detector.
    """
    tensors = _tensors(state)
    if "format" in state or _find(tensors, _DETECTORS)[0]:
        raise ValueError("it is a whole detector: give it as --load-path")
    program, preprocessing = _find(tensors, _CLASSIFIERS)
    model = _rename(tensors, _CLASSIFIER_NAMES) if program else tensors
    return {"model": model, "preprocessing": preprocessing, "layout": program or "the backbone's"}


def _find(tensors, layouts):
    return next((layout for name, layout in layouts.items() if name in tensors), (None, None))


def _tensors(state):
    """Return the tensors of a file by name, also where they are an entry, without the prefix of nn.DataParallel."""
    inner = (state[key] for key in ("model", "state_dict", "model_state_dict") if isinstance(state.get(key), dict))
    return {str(name).removeprefix("module."): tensor for name, tensor in next(inner, state).items()}


def _rename(tensors, names):
    renamed = {}
    for name, tensor in tensors.items():
        module, _, parameter = name.replace("/", ".").rpartition(".")
        renamed[f"{names.get(module, module)}.{_PARAMETERS.get(parameter, parameter)}"] = tensor
    return renamed


def _some(names):
    return ", ".join([*map(repr, names)][:4] + ["..."] * (len(names) > 4)) or "nothing"
