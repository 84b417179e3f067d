"""Checkpoints: what goes in comes out, nothing is half-written, and each failure is one sentence."""

import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import build
from utils import checkpoint as checkpoint_module
from utils.checkpoint import (
    CheckpointError,
    check_compatible,
    check_writable,
    checkpoint_error,
    load_checkpoint,
    load_weights,
    open_checkpoint,
    replacing,
    resolve_class_names,
    rng_state,
    save_checkpoint,
    set_rng_state,
    write_text,
)
from utils.config import OptionError

DAMAGED = r"a\.pth \(\d+ bytes\) is damaged \(copy it again\) or not written by torch\.save"


@pytest.fixture
def state():
    return {
        "model": OrderedDict(weight=torch.tensor([[0.5, 1, 2], [3, 4, 5]]), bias=torch.tensor([7])),
        "build": {"name": "vgg16", "n_fg_class": 2, "anchor_scales": (8, 16), "rpn_nms_thresh": 0.7},
        "class_names": ["cat", "dog"],
        "preprocessing": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1.0, "RGB"),
        "config": {"lr": 1e-3, "pretrained": None, "resume": False},
        "epoch": 3,
        "step": 41,
        "optimizer": {"state": {0: {"momentum": torch.full((2, 3), 0.5)}}, "param_groups": [{"lr": 1e-3}]},
        "rng": rng_state(),
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.pth"


class RunsCode:
    """Makes the folder `path` when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


# Files


def test_replacing_writes_beside_and_syncs_before_the_file_gets_its_name(path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append("fsync"), os.write(file, b""), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda old, new: (calls.append("replace"), replace(old, new)))
    path.write_text("old")
    with replacing(path) as partial:
        partial.write_text("new")
        assert (partial.parent, partial.suffix) == (path.parent, path.suffix)
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert calls == ["fsync", "replace"]
    assert os.listdir(path.parent) == [path.name]


def test_write_text(path):
    write_text(path, "né\n")
    assert path.read_bytes() == "né\n".encode()


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (OSError(28, "Disk full"), CheckpointError, r"a\.pth could not be written \(.*Disk full\), check"),
        (RuntimeError("stream"), CheckpointError, r"could not be written \(stream\)"),
        (KeyboardInterrupt("by hand"), KeyboardInterrupt, "by hand"),
    ],
)
def test_a_failure_while_writing_leaves_the_old_file_and_no_other(path, state, monkeypatch, error, raised, message):
    save_checkpoint(path, state)
    old = path.read_bytes()

    def write_half(_, partial):
        partial.write_bytes(old[: len(old) // 2])
        raise error

    monkeypatch.setattr(torch, "save", write_half)
    with pytest.raises(raised, match=message):
        save_checkpoint(path, state | {"epoch": 4})
    assert path.read_bytes() == old
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("resume", [False, True])
def test_round_trip(tmp_path, state, resume):
    path = tmp_path / "runs" / "new" / "last.pth"  # folders that do not exist yet
    save_checkpoint(path, state)
    loaded = load_checkpoint(path, resume=resume)
    assert loaded.pop("format") == 2
    assert loaded.keys() == state.keys()
    for key in ("build", "class_names", "preprocessing", "config", "epoch", "step"):
        assert loaded[key] == state[key]
    assert list(loaded["model"]) == ["weight", "bias"]
    for name, tensor in state["model"].items():
        assert loaded["model"][name].dtype == tensor.dtype
        assert torch.equal(loaded["model"][name], tensor)
    assert torch.equal(loaded["optimizer"]["state"][0]["momentum"], torch.full((2, 3), 0.5))


def test_weights_alone_cannot_be_resumed_from(path, state):
    del state["optimizer"], state["rng"]
    save_checkpoint(path, state)
    assert load_checkpoint(path)["epoch"] == 3
    with pytest.raises(CheckpointError, match=r"a\.pth has no optimizer and rng: start from it with --load-path"):
        load_checkpoint(path, resume=True)


def test_missing_file(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(
            CheckpointError, match=rf"^{path} is not a file: name one, such as runs/voc/last.pth, or resnet50_fpn, "
        ):
            load_checkpoint(path)


def test_damaged_files(path, state):
    save_checkpoint(path, state)
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[:-1], whole[: len(whole) // 2], whole[100:]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=DAMAGED):
            load_checkpoint(path)


def test_no_flipped_bit_goes_unnoticed(path, state):
    save_checkpoint(path, state)
    whole = path.read_bytes()
    weight = whole.index(state["model"]["weight"].numpy().tobytes())
    n_refused = 0
    for i in [weight + 5, *range(0, len(whole), 89)]:
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 16]) + whole[i + 1 :])
        try:
            loaded = load_checkpoint(path)
        except CheckpointError:
            n_refused += 1
        else:  # padding between the parts of the file
            assert i != weight + 5
            assert torch.equal(loaded["rng"]["cpu"], state["rng"]["cpu"])
            assert torch.equal(loaded["model"]["weight"], state["model"]["weight"])
    assert n_refused > 20


@pytest.fixture(scope="module", params=["new", "old", "npz"])
def weights_file(request, tmp_path_factory):
    """A file of weights in each format, and its content."""
    path = tmp_path_factory.mktemp("weights") / ("a.npz" if request.param == "npz" else "a.pth")
    if request.param == "npz":
        np.savez(path, **{"conv1_1/W": np.arange(6.0), "conv1_1/b": np.array([7])})
    else:
        state = {"conv1_1.weight": torch.arange(6.0), "best": np.float64(0.5), "names": ["a", "b"]}
        torch.save(state, path, _use_new_zipfile_serialization=request.param == "new")
    return path, path.read_bytes()


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.floats(0, 1), st.integers(0, 8), st.binary(max_size=4))
def test_damaged_bytes_raise_no_other_error(weights_file, share, length, piece):
    path, whole = weights_file
    start = round(share * len(whole))
    path.write_bytes(whole[:start] + piece + whole[start + length :])
    for load in (load_checkpoint, checkpoint_module.load_backbone):
        try:
            load(path)
        except CheckpointError as error:
            assert str(error).startswith(str(path))  # noqa: PT017


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_and_not_run(path, state, zipped):
    trace = path.with_name("trace")
    torch.save(state | {"config": RunsCode(trace)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"a\.pth holds \w+\.mkdir, which could run code"):
        load_checkpoint(path)
    np.savez(path.with_name("b.npz"), a=np.array([RunsCode(trace)], object))
    with pytest.raises(CheckpointError, match=r"b\.npz holds Python objects, which could run code"):
        load_checkpoint(path.with_name("b.npz"))
    assert not trace.exists()


def test_another_format(path, state):
    for number in (1, 3):
        torch.save(state | {"format": number}, path)
        message = rf"a\.pth cannot be used: its format {number} is not 2: use the version of this"
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(path)


def test_missing_keys(path):
    torch.save({"format": 2, "epoch": 1, "step": 1, "config": {}, "model": {}}, path)
    with pytest.raises(CheckpointError, match=r"a\.pth cannot be used: it lacks build, class_names, preprocessing$"):
        load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match=r"a\.pth holds a list, not a dict of weights"):
        load_checkpoint(path)


# Networks


@pytest.fixture(scope="module")
def network():
    return torch.nn.ModuleDict({"head": torch.nn.ModuleDict({name: torch.nn.Linear(2, 3) for name in NAMES})})


NAMES = ("fc6", "cls_loc", "score")


def test_load_weights(network):
    zeros = {name: torch.zeros_like(value) for name, value in network.state_dict().items()}
    before = {name: value.clone() for name, value in network.state_dict().items()}
    load_weights(network, {"model": zeros}, "a.pth", reset_head=True)
    for name, value in network.state_dict().items():
        assert torch.equal(value, zeros[name] if name.startswith("head.fc6") else before[name]), name
    load_weights(network, {"model": zeros}, "a.pth")
    assert all(torch.equal(value, zeros[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head.score.bias": torch.zeros(4)}, r"size mismatch for head\.score\.bias: .*\[4\].*\[3\]"),
        ({"head.new.bias": torch.zeros(4)}, r"Unexpected key\(s\) in state_dict: \"head\.new\.bias\""),
    ],
)
def test_weights_that_do_not_fit(network, change, message):
    with pytest.raises(CheckpointError, match=rf"^a\.pth cannot be used: {message}") as caught:
        load_weights(network, {"model": network.state_dict() | change}, "a.pth")
    assert "\n" not in str(caught.value)


def test_another_number_of_anchors_is_named():
    net, three = (build("vgg16", n_fg_class=2, head_width=1, anchor_ratios=ratios) for ratios in ((1,), (0.5, 1, 2)))
    with pytest.raises(CheckpointError, match=r"^a\.pth .*: it has another number of anchors per cell: pass its"):
        load_weights(net, {"model": three.state_dict()}, "a.pth")


def test_a_network_that_cannot_be_built_names_the_checkpoint():
    with pytest.raises(CheckpointError, match=r"^a\.pth cannot be used: .*unexpected keyword argument 'new'$"):  # noqa: SIM117
        with checkpoint_error("a.pth"):
            build("vgg16", n_fg_class=2, head_width=1, new=1)
    with pytest.raises(CheckpointError, match=r"^b\.pth"), checkpoint_error("a.pth"):
        raise CheckpointError("b.pth")


def test_open_checkpoint_of_ours(path, state, capsys):
    save_checkpoint(path, state)
    assert open_checkpoint(path)["preprocessing"] == state["preprocessing"]
    assert capsys.readouterr().out == f"{path}: a checkpoint of this library, step 41\n"
    with pytest.raises(OptionError, match=r"--preprocess=caffe: .*a\.pth states its own preprocessing"):
        open_checkpoint(path, "caffe")


def test_resolve_class_names(capsys):
    default = ("ant", "bee", "cow")
    checkpoint = {"class_names": ["cat", "dog"], "build": {"n_fg_class": 2}}
    assert resolve_class_names(checkpoint, (), default) == ("cat", "dog")
    assert resolve_class_names(checkpoint, ("cat", "dog"), default) == ("cat", "dog")
    with pytest.raises(OptionError, match="the checkpoint's classes are cat, dog: leave out --classes=dog,cat, which"):
        resolve_class_names(checkpoint, ("dog", "cat"), default)
    checkpoint["class_names"] = []
    assert resolve_class_names(checkpoint, ("hen", "pig"), default) == ("hen", "pig")
    with pytest.raises(OptionError, match="has 2 classes, but there are 1 name, hen: pass --classes=a,b,c"):
        resolve_class_names(checkpoint, ("hen",), default)
    with pytest.raises(OptionError, match="has 2 classes, but there are 0 names: pass --classes"):
        resolve_class_names(checkpoint, (), default)
    assert not capsys.readouterr().out
    assert resolve_class_names({"class_names": [], "build": {"n_fg_class": 3}}, (), default) == default
    assert "does not name its classes: taken to be ant, bee, cow (--classes=a,b,c)" in capsys.readouterr().out


KWARGS = {"name": "vgg16", "n_fg_class": 2, "head_width": 4096, "anchor_scales": (8, 16), "min_size": 600}


@pytest.mark.parametrize(
    ("names", "made", "message"),
    [
        (["cat", "dog"], KWARGS, None),
        ([], KWARGS, None),
        (
            ["dog", "cat"],
            KWARGS,
            r"a\.pth has 2 classes, dog, cat, the data have 2, cat, dog: --classes=dog,cat keeps its own, --reset-h",
        ),
        ([], KWARGS | {"n_fg_class": 3}, r"a\.pth has 3 classes, the data have 2, cat, dog: --reset-head initializes"),
        (["cat", "dog"], KWARGS | {"head_width": 16}, r"a\.pth was trained with --head-width=16, now it is 4096"),
        (["cat", "dog"], KWARGS | {"name": "zf"}, r"a\.pth was trained with --model=zf, now it is vgg16"),
    ],
)
def test_check_compatible(names, made, message):
    checkpoint = {"class_names": names, "build": made}
    if message is None:
        check_compatible("a.pth", checkpoint, ("cat", "dog"), KWARGS)
    else:
        with pytest.raises(CheckpointError, match=message):
            check_compatible("a.pth", checkpoint, ("cat", "dog"), KWARGS)
    if "--reset-head" in (message or ""):
        check_compatible("a.pth", checkpoint, ("cat", "dog"), KWARGS, reset_head=True)


def test_differences_that_are_noted(capsys):
    made = KWARGS | {"anchor_scales": (4.0, 8), "min_size": 600, "max_size": 900, "ceil_mode": True}
    check_compatible("a.pth", {"class_names": [], "build": made}, ("cat", "dog"), KWARGS)
    assert capsys.readouterr().out.splitlines() == [
        "note: a.pth was trained with --anchor-scales=4,8, now it is 8,16",
        "note: a.pth does not name its classes; they are taken to be cat, dog, in this order",
    ]


# Random state and environment


def test_random_state_continues(path, state):
    state["rng"] = rng_state()
    save_checkpoint(path, state)
    expected = torch.rand(5)
    torch.rand(3)
    set_rng_state(load_checkpoint(path, resume=True)["rng"])
    assert torch.equal(torch.rand(5), expected)


def test_random_state_of_an_absent_device(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *args: calls.append(args))
    first, second = torch.zeros(16, dtype=torch.uint8), torch.ones(16, dtype=torch.uint8)
    set_rng_state({"cpu": torch.get_rng_state(), "cuda": [first, second]})
    assert calls == [(first, 0)]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_random_state_of_cuda():
    torch.rand(1, device="cuda")
    before = rng_state()
    expected = torch.rand(5, device="cuda")
    set_rng_state(before)
    assert torch.equal(torch.rand(5, device="cuda"), expected)


def test_a_device_is_not_replaced():
    with pytest.raises(OSError, match=r"^/dev/null is no regular file"):
        check_writable("/dev/null")
    assert Path("/dev/null").is_char_device()
