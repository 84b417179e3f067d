"""Convert the weights of other programs to the form of this library: whole detectors and VGG16 classifiers.

A layout is recognised by the name of one tensor; names and shapes are checked when the weights are loaded into a
network. The tensors of torchvision's detectors keep their names: their network, model/resnet_fpn.py, takes them.
"""

import re

from torchvision.models import get_model_weights

# conv1_1 ... conv5_3 and their indices in torchvision's `features`, which are those of our extractor
_BLOCKS = {1: (0, 2), 2: (5, 7), 3: (10, 12, 14), 4: (17, 19, 21), 5: (24, 26, 28)}
_CONVS = {f"conv{block}_{n}": i for block, indices in _BLOCKS.items() for n, i in enumerate(indices, 1)}

# names of modules, with dots: theirs -> ours; other names stay as they are
_DETECTOR_NAMES = {f"extractor.{conv}.conv": f"extractor.{i}" for conv, i in _CONVS.items()}
_DETECTOR_NAMES |= {"rpn.conv1": "rpn.conv", "head.classifier.0": "head.fc6"}
_DETECTOR_NAMES |= {f"head.classifier.{i}": "head.fc7" for i in (2, 3)}  # without and with dropout layers
_CLASSIFIER_NAMES = {conv + suffix: f"features.{i}" for conv, i in _CONVS.items() for suffix in ("", ".conv")}
_CLASSIFIER_NAMES |= {"fc6": "classifier.0", "fc7": "classifier.3"}
_WRAPPERS = re.compile(r"^((module|_orig_mod|model|net|detector)\.)+")  # of DataParallel, torch.compile, Lightning
_PARAMETERS = {"W": "weight", "b": "bias"}

# a tensor of the layout -> program, and the preprocessing that its weights expect, a name of model.utils.preprocess
_DETECTORS = {"rpn.conv1.weight": ("simple-faster-rcnn-pytorch", None), "rpn/conv1/W": ("chainercv", "chainercv")}
_DETECTORS |= {"roi_heads.box_predictor.cls_score.weight": ("torchvision", "torchvision")}
_CLASSIFIERS = {
    "features.0.weight": ("torchvision", None),
    "conv1_1.weight": ("Caffe", "caffe"),
    "conv1_1/W": ("Caffe, through Chainer", "caffe"),
    "conv1_1/conv/W": ("chainercv", "chainercv"),
}
_ANCHORS, _SIZES = {"anchor_scales": (8, 16, 32), "anchor_ratios": (0.5, 1, 2)}, {"min_size": 600, "max_size": 1000}


def convert_detector(state: dict, hint: str = "") -> dict:
    """Convert the detector of another program to the form of our checkpoints.

    Args:
        state: content of its file, tensors by name; simple-faster-rcnn-pytorch puts them into "model".
        hint: the name of the file, or the wanted model: torchvision's two on MobileNet have the same tensors, and
            "_320_" in it tells them apart unless the file has "args", as torchvision's references/detection stores.

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
    empty = {"class_names": [], "config": {}, "epoch": None, "step": None}
    if program == "torchvision":
        own = _describe_torchvision(tensors, getattr(state.get("args"), "model", hint))
        return empty | own | {"preprocessing": preprocessing}
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
    return empty | {"model": model, "build": build, "preprocessing": preprocessing, "layout": program}


def _describe_torchvision(tensors, hint):
    """Return "model", "build", "class_names" and "layout" of a detector of torchvision; 91 outputs are those of COCO.

    The branches of Mask and Keypoint R-CNN are left out: their boxes are those of Faster R-CNN.
    """
    name = "resnet50_fpn" if "backbone.body.layer1.0.conv1.weight" in tensors else "mobilenet_v3_large_fpn"
    if "rpn.head.conv.1.0.weight" in tensors:
        name = "resnet50_fpn_v2"
    elif name == "mobilenet_v3_large_fpn" and "_320_" in hint:
        name = "mobilenet_v3_large_320_fpn"
    layout = f"torchvision, {name}"
    if name == "mobilenet_v3_large_fpn":
        layout += " (mobilenet_v3_large_320_fpn, which has the same tensors, needs _320_ in the file's name)"
    n_fg_class = len(tensors["roi_heads.box_predictor.cls_score.bias"]) - 1
    coco = get_model_weights("fasterrcnn_resnet50_fpn").COCO_V1.meta["categories"][1:]  # without the background
    names = coco if n_fg_class == len(coco) else []
    others = ("roi_heads.mask_", "roi_heads.keypoint_")
    model = {name: tensor for name, tensor in tensors.items() if not name.startswith(others)}
    build = {"name": name, "n_fg_class": n_fg_class}
    return {"model": model, "build": build, "class_names": list(names), "layout": layout}


def convert_backbone(state: dict) -> dict:
    """Convert a VGG16 classifier to torchvision's names; leave the weights of other backbones as they are.

    Args:
        state: content of a file, tensors by name.

    Returns:
        "model": tensors by name; "preprocessing": a name of model.utils.preprocess or None; "layout": the program.

    Raises:
        ValueError: It is a detector, and not one of torchvision, whose backbone can be taken.
    """
    tensors = _tensors(state)
    whole = _find(tensors, _DETECTORS)[0]
    if "format" in state or whole not in (None, "torchvision"):
        raise ValueError("it is a whole detector: give it as --load-path")
    program, preprocessing = _find(tensors, _CLASSIFIERS)
    model = _rename(tensors, _CLASSIFIER_NAMES) if program else tensors
    layout = program or ("torchvision's detector" if whole else "the backbone's")
    return {"model": model, "preprocessing": preprocessing, "layout": layout}


def _find(tensors, layouts):
    return next((layout for name, layout in layouts.items() if name in tensors), (None, None))


def _tensors(state):
    """Return the tensors of a file by name, also where they are an entry, without the prefixes of wrappers."""
    inner = (state[key] for key in ("model", "state_dict", "model_state_dict") if isinstance(state.get(key), dict))
    return {_WRAPPERS.sub("", str(name)): tensor for name, tensor in next(inner, state).items()}


def _rename(tensors, names):
    renamed = {}
    for name, tensor in tensors.items():
        module, _, parameter = name.replace("/", ".").rpartition(".")
        renamed[f"{names.get(module, module)}.{_PARAMETERS.get(parameter, parameter)}"] = tensor
    return renamed


def _some(names):
    return ", ".join([*map(repr, names)][:4] + ["..."] * (len(names) > 4)) or "nothing"
