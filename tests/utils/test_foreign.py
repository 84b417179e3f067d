"""Other programs' weights: each layout is recognised, comes out under our names, and what does not fit is named."""
import numpy as np
import pytest
import torch

from utils import foreign
from utils.checkpoint import CheckpointError, load_backbone, load_checkpoint, read_tensors
from utils.foreign import LayoutError, as_backbone, as_checkpoint

# as they are called in VGG16's paper, by place in torchvision's list of layers, with their output channels
CONVS = {0: ("conv1_1", 64), 2: ("conv1_2", 64), 5: ("conv2_1", 128), 7: ("conv2_2", 128), 10: ("conv3_1", 256),
         12: ("conv3_2", 256), 14: ("conv3_3", 256), 17: ("conv4_1", 512), 19: ("conv4_2", 512), 21: ("conv4_3", 512),
         24: ("conv5_1", 512), 26: ("conv5_2", 512), 28: ("conv5_3", 512)}
N_CLASS, WIDTH = 4, 6  # with the background; of fc6 and fc7
BUILD = {"name": "vgg16", "n_fg_class": 3, "head_width": WIDTH, "anchor_scales": (8, 16, 32),
         "anchor_ratios": (0.5, 1, 2), "min_size": 600, "max_size": 1000}


@pytest.fixture
def shared(monkeypatch):
    """One number instead of each tensor's memory: layouts are about names and shapes."""
    def tensor(shape):
        tensor.n += 1
        return torch.tensor(float(tensor.n)).expand(shape)  # (*shape)

    tensor.n = 0
    return tensor


@pytest.fixture
def ours(shared):
    """A detector with three classes and a narrow head, under our names."""
    shapes, channels = {}, 3
    for place, (_, out) in CONVS.items():
        shapes[f"extractor.{place}"], channels = (out, channels, 3, 3), out
    shapes |= {"rpn.conv": (512, 512, 3, 3), "rpn.score": (18, 512, 1, 1), "rpn.loc": (36, 512, 1, 1),
               "head.fc6": (WIDTH, 25088), "head.fc7": (WIDTH, WIDTH), "head.cls_loc": (4 * N_CLASS, WIDTH),
               "head.score": (N_CLASS, WIDTH)}
    return {f"{name}.{kind}": shared(shape if kind == "weight" else shape[:1])
            for name, shape in shapes.items() for kind in ("weight", "bias")}


@pytest.fixture
def vgg16(shared):
    """A classifier, under torchvision's names."""
    shapes, channels = {}, 3
    for place, (_, out) in CONVS.items():
        shapes[f"features.{place}"], channels = (out, channels, 3, 3), out
    shapes |= {"classifier.0": (4096, 25088), "classifier.3": (4096, 4096), "classifier.6": (1000, 4096)}
    return {f"{name}.{kind}": shared(shape if kind == "weight" else shape[:1])
            for name, shape in shapes.items() for kind in ("weight", "bias")}


def rename(state, names):
    """`state` with what comes first in a name replaced by what `names` says."""
    out = {}
    for key, value in state.items():
        module, kind = key.rsplit(".", 1)
        out[names.get(module, module) + "." + kind] = value
    return out


def simple(ours, dropout=False):
    return rename(ours, {"rpn.conv": "rpn.conv1", "head.fc6": "head.classifier.0",
                         "head.fc7": "head.classifier.3" if dropout else "head.classifier.2"})


def chainer(state):
    """Slashes for dots, W and b for weight and bias."""
    return {key.removesuffix(".weight").removesuffix(".bias").replace(".", "/") + ("/W" if key.endswith("t") else "/b"):
            value for key, value in state.items()}


def chainercv(ours):
    names = {f"extractor.{place}": f"extractor.{name}.conv" for place, (name, _) in CONVS.items()}
    return chainer(rename(ours, names | {"rpn.conv": "rpn.conv1"}))


def caffe(vgg16, suffix=""):
    names = {f"features.{place}": name + suffix for place, (name, _) in CONVS.items()}
    return rename(vgg16, names | {"classifier.0": "fc6", "classifier.3": "fc7", "classifier.6": "fc8"})


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for key, value in found.items():
        assert value.shape == wanted[key].shape, key
        assert value.flatten()[0] == wanted[key].flatten()[0], key


# Detectors


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("wrap", [
    lambda state: state, lambda state: {"model": state, "other_info": {}},
    lambda state: {"model": {f"module.{name}": value for name, value in state.items()}}])
def test_simple_faster_rcnn_pytorch(ours, wrap, dropout):
    checkpoint = as_checkpoint(wrap(simple(ours, dropout)))
    assert_same(checkpoint.pop("model"), ours)
    assert checkpoint == {"build": BUILD, "class_names": [], "preprocessing": None, "config": {}, "epoch": None,
                          "step": None, "layout": "simple-faster-rcnn-pytorch"}


@pytest.mark.parametrize(("options", "preprocessing"), [
    ({"caffe_pretrain": True}, "caffe-rgb-mean"), ({"caffe_pretrain": False}, "torchvision"), ({"lr": 1}, None),
    (None, None)])
def test_its_options_say_what_the_network_saw(ours, options, preprocessing):
    assert as_checkpoint({"model": simple(ours), "config": options})["preprocessing"] == preprocessing


def test_its_options_say_how_large_images_were(ours):
    build = as_checkpoint({"model": simple(ours), "config": {"min_size": 300, "max_size": None}})["build"]
    assert build == BUILD | {"min_size": 300}


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_named(ours, shared, value):
    bad = torch.tensor([0, 0, 0, value])
    with pytest.raises(LayoutError, match=r"but a number of 'head\.score\.bias' is not finite"):
        as_checkpoint(simple(ours) | {"head.score.bias": bad})


def test_no_class_at_all(ours, shared):
    state = simple(ours) | {"head.score.weight": shared((1, WIDTH)), "head.score.bias": shared((1,)),
                            "head.cls_loc.weight": shared((4, WIDTH)), "head.cls_loc.bias": shared((4,))}
    with pytest.raises(LayoutError, match="but scores for 1 classes with the background"):
        as_checkpoint(state)


def test_chainercv(ours):
    checkpoint = as_checkpoint(chainercv(ours))
    assert {"extractor/conv1_1/conv/W", "rpn/conv1/b", "head/cls_loc/W"} < chainercv(ours).keys()
    assert_same(checkpoint["model"], ours)
    assert (checkpoint["layout"], checkpoint["preprocessing"]) == ("chainercv", "chainercv")
    assert checkpoint["build"] == BUILD | {"ceil_mode": True}


def test_half_precision_becomes_float32(ours):
    state = {name: value.half() for name, value in simple(ours).items()}
    assert {value.dtype for value in as_checkpoint(state)["model"].values()} == {torch.float32}


@pytest.mark.parametrize("layout", [simple, chainercv])
def test_what_is_missing_or_one_too_many_is_named(ours, layout):
    state = layout(ours)
    gone = next(name for name in state if "score" in name)
    value = state.pop(gone)
    with pytest.raises(LayoutError, match=f"has the layout of .*, but lacks '{gone}'$"):
        as_checkpoint(state)
    with pytest.raises(LayoutError, match=r"but also holds 'extractor\.bn'$"):
        as_checkpoint(state | {gone: value, "extractor.bn": value})


@pytest.mark.parametrize(("name", "shape", "wanted"), [
    ("extractor.5.weight", (128, 3, 3, 3), (128, 64, 3, 3)),
    ("rpn.score.weight", (24, 512, 1, 1), (18, 512, 1, 1)),  # twelve anchors
    ("rpn.conv1.bias", (256,), (512,)),
    ("head.cls_loc.weight", (20, WIDTH), (16, WIDTH)),  # another number of classes than the scores have
    ("head.classifier.2.weight", (WIDTH, 9), (WIDTH, WIDTH)),
    ("head.classifier.0.weight", (WIDTH, 512), (WIDTH, 25088)),
])
def test_another_shape_is_named_with_the_wanted(ours, shared, name, shape, wanted):
    with pytest.raises(LayoutError) as caught:
        as_checkpoint(simple(ours) | {name: shared(shape)})
    assert f"{name!r} has the shape {shape}, wanted is {wanted}" in str(caught.value)


def test_a_name_with_something_else_behind_it(ours):
    for value in ([1.0], torch.ones(36, dtype=torch.int8), torch.ones(36).to_sparse()):
        with pytest.raises(LayoutError, match=r"but 'rpn\.loc\.bias' is no tensor of fractions"):
            as_checkpoint(simple(ours) | {"rpn.loc.bias": value})


@pytest.mark.parametrize("state", [
    {}, {"state_dict": {"a": 1}}, {"model": {}}, {1: 2}, {"layer1.0.conv1.weight": torch.zeros(1)}])
def test_no_detector_at_all(state):
    with pytest.raises(LayoutError, match=r"is no detector that this library knows: it holds .*rpn\.conv1.*rpn/conv1"):
        as_checkpoint(state)


def test_a_classifier_is_sent_where_it_belongs(vgg16):
    with pytest.raises(LayoutError, match="is a bare VGG16 in the layout of torchvision: give it as --pretrained"):
        as_checkpoint(vgg16)


# Classifiers


@pytest.mark.parametrize(("layout", "program", "preprocessing"), [
    (lambda vgg16: vgg16, "torchvision", None),
    (caffe, "Caffe", "caffe"),
    (lambda vgg16: chainer(caffe(vgg16)), "Caffe, through Chainer", "caffe"),
    (lambda vgg16: {name.replace("fc6/conv", "fc6"): value for name, value in chainer(caffe(vgg16, ".conv")).items()},
     "chainercv", "chainercv"),
])
@pytest.mark.parametrize("whole", [True, False])
def test_vgg16(vgg16, layout, program, preprocessing, whole):
    wanted = {name: value for name, value in vgg16.items() if name.split(".")[1] != "6" or name.startswith("f")}
    if not whole:
        vgg16 = wanted = {name: value for name, value in vgg16.items() if name.startswith("features")}
    backbone = as_backbone(layout(vgg16))
    assert_same(backbone["model"], wanted)
    assert (backbone["layout"], backbone["preprocessing"]) == (program, preprocessing)


def test_half_a_classifier_is_none(vgg16, shared):
    with pytest.raises(LayoutError, match=r"layout of Caffe, but lacks 'fc6\.bias'$"):
        as_backbone({name: value for name, value in caffe(vgg16).items() if name != "fc6.bias"})
    with pytest.raises(LayoutError, match=r"layout of torchvision, but lacks 'features\.28\.weight'$"):
        as_backbone({name: value for name, value in vgg16.items() if name != "features.28.weight"})
    with pytest.raises(LayoutError, match=r"'features\.2\.weight' has the shape \(32, 64, 3, 3\), wanted is \(64, 64"):
        as_backbone(vgg16 | {"features.2.weight": shared((32, 64, 3, 3))})
    with pytest.raises(LayoutError, match=r"'classifier\.3\.weight' has the shape \(8, 4096\)"):
        as_backbone(vgg16 | {"classifier.3.weight": shared((8, 4096))})


def test_detectors_are_sent_where_they_belong(ours):
    for state in (simple(ours), {"model": simple(ours)}, chainercv(ours), {"format": 1, "model": ours}):
        with pytest.raises(LayoutError, match="is a whole detector: give it as --load-path"):
            as_backbone(state)


@pytest.mark.parametrize("state", [{}, {"layer1.0.conv1.weight": torch.zeros(1)}])
def test_no_vgg16_at_all(state):
    with pytest.raises(LayoutError, match=r"is no VGG16: it holds .*'features\.0\.weight' \(torchvision\), 'conv1_1"):
        as_backbone(state)


# Files


@pytest.fixture
def small(monkeypatch, shared):
    """A layout of two tensors, so that files are small."""
    layout = foreign._Layout("a small program", {"extractor.0": "x/conv"}, ("/W", "/b"), "caffe")
    monkeypatch.setattr(foreign, "_DETECTORS", (layout,))
    monkeypatch.setattr(foreign, "_CLASSIFIERS", ())
    monkeypatch.setattr(foreign, "_check_shapes", lambda model, layout, shapes: None)
    rename = foreign._rename
    extra = {"head.fc6.bias": torch.zeros(7), "head.score.bias": torch.zeros(3)}
    monkeypatch.setattr(foreign, "_rename", lambda *args: rename(*args) | extra)
    return {"x/conv/W": torch.arange(6.0).reshape(2, 3), "x/conv/b": torch.tensor([0.5, 7])}  # (2, 3)


def old(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


def npz(state, path):
    with path.open("wb") as file:  # savez would add its suffix
        np.savez(file, **{name: value.numpy() for name, value in state.items()})


@pytest.mark.parametrize("write", [torch.save, old, npz])
def test_every_kind_of_file_is_read(tmp_path, small, write):
    path = tmp_path / "weights"
    write(small, path)
    checkpoint = load_checkpoint(path)
    assert torch.equal(checkpoint["model"]["extractor.0.weight"], small["x/conv/W"])
    assert torch.equal(checkpoint["model"]["extractor.0.bias"], small["x/conv/b"])
    assert (checkpoint["build"]["n_fg_class"], checkpoint["build"]["head_width"]) == (2, 7)
    with pytest.raises(CheckpointError, match="was written by a small program: start from it with --load-path"):
        load_checkpoint(path, resume=True)


@pytest.mark.parametrize("write", [torch.save, old, npz])
def test_half_a_file_is_damaged(tmp_path, small, write):
    path = tmp_path / "weights"
    write(small, path)
    whole = path.read_bytes()
    for n in (1, 20, len(whole) // 2, len(whole) - 9):
        path.write_bytes(whole[:n])
        for load in (load_checkpoint, load_backbone):
            with pytest.raises(CheckpointError, match=r"weights \(\d+ bytes\) is damaged, cut short, or was never a"):
                load(path)


def test_any_byte_order(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([1.5, -2], ">f4"))
    assert read_tensors(tmp_path / "a.npz")["a"].tolist() == [1.5, -2]


@pytest.mark.parametrize("write", [torch.save, old])
def test_numpys_numbers_beside_the_weights_are_read(tmp_path, write):
    numbers = {"best_map": np.float64(0.7053), "n": np.int64(-3), "x": np.float32(0.25)}
    write({"numbers": numbers, "plain": 5}, tmp_path / "a.pth")
    assert read_tensors(tmp_path / "a.pth") == {"numbers": {"best_map": 0.7053, "n": -3, "x": 0.25}, "plain": 5}


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (self.path,)


def test_no_file_runs_code(tmp_path):
    trace = tmp_path / "trace"
    old({"model": RunsCode(str(trace))}, tmp_path / "a.pth")
    np.savez(tmp_path / "b.npz", a=np.array([RunsCode(str(trace))], object))
    with pytest.raises(CheckpointError, match=r"a\.pth holds \w+\.mkdir, which could run code"):
        load_checkpoint(tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"b\.npz holds objects, which could run code"):
        load_checkpoint(tmp_path / "b.npz")
    assert not trace.exists()


def test_the_file_is_named(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth is no detector that this library knows: it holds 'a';"):
        load_checkpoint(tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth is no VGG16: it holds 'a',"):
        load_backbone(tmp_path / "a.pth")
    torch.save([1], tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth holds a list, wanted is a dict with a detector's weights"):
        load_checkpoint(tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth is no VGG16: it holds nothing,"):
        load_backbone(tmp_path / "a.pth")


def test_no_file():
    with pytest.raises(CheckpointError, match="--pretrained=imagnet is no file, and is none of imagenet, caffe and"):
        load_backbone("imagnet")
