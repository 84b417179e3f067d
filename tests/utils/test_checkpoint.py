"""Checkpoints: what goes in comes out, nothing is half-written, and each failure is one sentence."""

import os
import stat
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from utils import checkpoint
from utils.checkpoint import CheckpointError, load_checkpoint, rng_state, save_checkpoint, set_rng_state


@pytest.fixture
def state():
    return {
        "model": OrderedDict(weight=torch.tensor([[0.5, 1, 2], [3, 4, 5]]), bias=torch.tensor([7])),
        "build": {"name": "vgg16", "n_fg_class": 2},
        "class_names": ["cat", "dog"],
        "preprocessing": {"mean": (0.485, 0.456, 0.406), "channels": "RGB"},
        "config": {"lr": 1e-3, "pretrained": None, "resume": False},
        "epoch": 3,
        "step": 41,
        "optimizer": {"state": {0: {"momentum": torch.full((2, 3), 0.5)}}, "param_groups": [{"lr": 1e-3}]},
        "rng": rng_state(),
    }


class RunsCode:
    """Runs code when it is unpickled: makes the folder whose path it was given."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("resume", [False, True])
def test_round_trip(tmp_path, state, resume):
    path = tmp_path / "runs" / "new" / "last.pth"  # folders that do not exist yet
    save_checkpoint(path, state)
    loaded = load_checkpoint(path, resume=resume)
    assert loaded.pop("format") == 1
    assert loaded.keys() == state.keys()
    for key in ("build", "class_names", "preprocessing", "config", "epoch", "step"):
        assert loaded[key] == state[key]
    assert list(loaded["model"]) == ["weight", "bias"]
    for name, tensor in state["model"].items():
        assert loaded["model"][name].dtype == tensor.dtype
        assert torch.equal(loaded["model"][name], tensor)
    assert torch.equal(loaded["optimizer"]["state"][0]["momentum"], torch.full((2, 3), 0.5))
    assert os.listdir(path.parent) == ["last.pth"]


def test_the_state_handed_in_is_left_alone(tmp_path, state):
    before = list(state)
    save_checkpoint(tmp_path / "a.pth", state)
    assert list(state) == before


def test_weights_only_is_enough_for_all_but_resuming(tmp_path, state):
    path = tmp_path / "best.pth"
    del state["optimizer"], state["rng"]
    save_checkpoint(path, state)
    assert load_checkpoint(path)["epoch"] == 3
    with pytest.raises(CheckpointError, match=r"best\.pth has weights but no 'optimizer', 'rng': resume"):
        load_checkpoint(path, resume=True)


def test_others_may_read_the_file(tmp_path, state):
    save_checkpoint(tmp_path / "a.pth", state)
    (tmp_path / "b").touch()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.pth", "b")]
    assert modes[0] == modes[1]


def test_map_location(tmp_path, state):
    save_checkpoint(tmp_path / "a.pth", state)
    model = load_checkpoint(tmp_path / "a.pth", map_location="meta")["model"]
    assert model["weight"].device.type == "meta"


@pytest.mark.parametrize("resume", [False, True])
def test_a_loaded_checkpoint_outlives_its_file(tmp_path, state, resume):
    path = tmp_path / "last.pth"
    save_checkpoint(path, state)
    loaded = load_checkpoint(path, resume=resume)
    save_checkpoint(path, state | {"model": {"weight": torch.zeros(2, 3)}})
    assert torch.equal(loaded["model"]["weight"], state["model"]["weight"])


@pytest.mark.parametrize(
    ("error", "seen", "words"),
    [
        (OSError(28, "Disk full"), CheckpointError, r"last\.pth could not be written \(.*Disk full\): nothing"),
        (RuntimeError("stream"), CheckpointError, r"could not be written \(stream\)"),
        (KeyboardInterrupt("by hand"), KeyboardInterrupt, "by hand"),
    ],
)
def test_a_failure_half_way_leaves_the_old_file_and_nothing_else(
    tmp_path, state, monkeypatch, error, seen, words
):
    path = tmp_path / "last.pth"
    save_checkpoint(path, state)
    old = path.read_bytes()

    def write_half(_, partial):
        partial.write_bytes(old[: len(old) // 2])
        assert len(os.listdir(tmp_path)) == 2  # the unfinished file lies in the same folder
        raise error

    monkeypatch.setattr(torch, "save", write_half)
    with pytest.raises(seen, match=words):
        save_checkpoint(path, state | {"epoch": 4})
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["last.pth"]


def test_the_file_is_on_the_disk_before_it_gets_its_name(tmp_path, state, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda old, new: (calls.append("replace"), replace(old, new)))
    save_checkpoint(tmp_path / "a.pth", state)
    assert calls == ["fsync", "replace", "fsync"]  # the last one: of the folder


def test_the_checkpoint_before_is_kept_and_offered_where_the_last_one_is_damaged(tmp_path, state):
    path, before = tmp_path / "last.pth", tmp_path / "last.pth.1"
    save_checkpoint(path, state, keep=True)
    assert not before.exists()
    for epoch in (4, 5):
        save_checkpoint(path, state | {"epoch": epoch}, keep=True)
    assert (load_checkpoint(path)["epoch"], load_checkpoint(before)["epoch"]) == (5, 4)
    assert sorted(os.listdir(tmp_path)) == ["last.pth", "last.pth.1"]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=rf"damaged.*: the one before it is whole: mv {before} {path}$"):
        load_checkpoint(path, resume=True)
    before.write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"damaged.*: copy it again$"):
        load_checkpoint(path)


@pytest.mark.parametrize("links", [True, False])
def test_a_failure_between_the_two_names_leaves_a_whole_checkpoint(tmp_path, state, monkeypatch, links):
    path = tmp_path / "last.pth"
    save_checkpoint(path, state, keep=True)
    replace = os.replace

    def replace_until(old, new):
        if new == path:
            raise OSError(5, "Input/output error")
        replace(old, new)

    def no_link(*names):
        raise PermissionError

    monkeypatch.setattr(os, "replace", replace_until)
    if not links:
        monkeypatch.setattr(os, "link", no_link)
    with pytest.raises(CheckpointError):
        save_checkpoint(path, state | {"epoch": 4}, keep=True)
    there = path if links else tmp_path / "last.pth.1"
    assert load_checkpoint(there)["epoch"] == 3
    assert sorted(os.listdir(tmp_path)) == (["last.pth", "last.pth.1"] if links else ["last.pth.1"])


def test_a_folder_that_cannot_be_made(tmp_path, state):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"a\.pth could not be written"):
        save_checkpoint(tmp_path / "file" / "a.pth", state)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config": {"lr": np.float64(0.1)}}, r"state\['config'\]\['lr'\] is a numpy\.float64"),
        ({"class_names": ["cat", np.str_("dog")]}, r"state\['class_names'\]\[1\] is a numpy\.str_"),
        ({"build": {"hook": len}}, r"state\['build'\]\['hook'\] is a builtins\.builtin_function"),
        ({"build": {np.int64(4): 1}}, r"a key of state\['build'\] is a numpy\.int64"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(tmp_path, state, change, words):
    with pytest.raises(CheckpointError, match=words):
        save_checkpoint(tmp_path / "a.pth", state | change)
    assert not any(tmp_path.iterdir())


def test_a_state_without_a_key_is_not_written(tmp_path, state):
    del state["class_names"]
    with pytest.raises(CheckpointError, match=r"lacks 'class_names'"):
        save_checkpoint(tmp_path / "a.pth", state)
    assert not any(tmp_path.iterdir())


def test_no_file(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(CheckpointError, match=r"is not a file: name a checkpoint") as caught:
            load_checkpoint(path)
        assert str(caught.value).startswith(str(path))


def test_damaged_files(tmp_path, state):
    path = tmp_path / "a.pth"
    save_checkpoint(path, state)
    whole = path.read_bytes()
    weight = whole.index(state["model"]["weight"].numpy().tobytes())
    flipped = bytearray(whole)
    flipped[weight + 5] ^= 1
    for content in (b"", b"hello", whole[:-1], whole[: len(whole) // 2], whole[100:], bytes(flipped)):
        path.write_bytes(content)
        for resume in (False, True):
            with pytest.raises(CheckpointError, match=r"a\.pth \(\d+ bytes\) is damaged, cut short, or was never a"):
                load_checkpoint(path, resume=resume)


def test_no_flipped_bit_goes_unseen(tmp_path, state):
    path = tmp_path / "a.pth"
    save_checkpoint(path, state)
    whole = path.read_bytes()
    n_refused = 0
    for i in range(0, len(whole), 89):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 16]) + whole[i + 1 :])
        try:
            loaded = load_checkpoint(path)
        except CheckpointError:
            n_refused += 1
        else:  # padding between the parts of the file
            assert torch.equal(loaded["rng"]["cpu"], state["rng"]["cpu"])
            assert torch.equal(loaded["model"]["weight"], state["model"]["weight"])
    assert n_refused > 20


def test_a_zip_file_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "weights.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(CheckpointError, match=r"weights\.zip \(\d+ bytes\) is damaged, cut short, or was never a"):
        load_checkpoint(tmp_path / "weights.zip")


@pytest.mark.parametrize("kind", ["npz", "torch"])
def test_a_file_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path, kind):
    path, name = tmp_path / "bomb", {"npz": "a.npy", "torch": "a/data.pkl"}[kind]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, bytes(10**7))
    assert path.stat().st_size < 20000
    assert checkpoint._kind(path) is None
    np.savez_compressed(tmp_path / "weights.npz", a=np.random.default_rng(0).normal(size=1000))
    assert checkpoint._kind(tmp_path / "weights.npz") == "npz"


def test_code_is_refused_and_not_run(tmp_path, state):
    path, trace = tmp_path / "a.pth", tmp_path / "trace"
    torch.save(state | {"format": 1, "config": RunsCode(trace)}, path)
    with pytest.raises(CheckpointError, match=r"a\.pth holds \w+\.mkdir, which could run code"):
        load_checkpoint(path)
    assert not trace.exists()


def test_half_a_checkpoint(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"format": 1, "epoch": 1, **{f"k{i}": i for i in range(20)}}, path)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path} is no checkpoint of this library: it needs 'format', 'model', ")
    assert "lacks 'model', 'build', 'class_names', 'preprocessing', 'config', 'step'," in message
    assert message.endswith("'format', 'epoch', 'k0', 'k1', 'k2', 'k3', 'k4', 'k5', 'k6', 'k7', ...")
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match=r"a\.pth holds a list, wanted is a dict"):
        load_checkpoint(path)


@pytest.mark.parametrize(("key", "kind"), [
    ("model", "dict"), ("build", "dict"), ("class_names", "list"), ("config", "dict")])
def test_a_part_of_another_kind_is_named(tmp_path, state, key, kind):
    torch.save(state | {"format": 1, key: 5}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=rf"a\.pth is no checkpoint .*: its '{key}' is a int, not a {kind}$"):
        load_checkpoint(tmp_path / "a.pth")


def test_a_newer_format_is_named(tmp_path, state, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    save_checkpoint(tmp_path / "a.pth", state)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"a\.pth has format 2, this version reads 1: use a newer"):
        load_checkpoint(tmp_path / "a.pth")


def test_random_state_goes_on_where_it_was(tmp_path, state):
    state["rng"] = rng_state()
    assert state["rng"]["cpu"].dtype == torch.uint8
    save_checkpoint(tmp_path / "a.pth", state)
    want = torch.rand(5)
    torch.rand(3)
    set_rng_state(load_checkpoint(tmp_path / "a.pth", resume=True)["rng"])
    assert torch.equal(torch.rand(5), want)


def test_random_state_of_a_device_that_is_not_here(monkeypatch):
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
    want = torch.rand(5, device="cuda")
    set_rng_state({"cpu": before["cpu"].cuda(), "cuda": [state.cuda() for state in before["cuda"]]})
    assert torch.equal(torch.rand(5, device="cuda"), want)
