"""The library of an array, and conversion between tensors and arrays; CuPy is a stub except in the GPU tests."""

import contextlib
import sys
import warnings
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from model.utils import array_tool
from model.utils.anchor_target_creator import AnchorTargetCreator
from model.utils.anchors import enumerate_shifted_anchor, generate_anchor_base
from model.utils.proposal_creator import ProposalCreator
from model.utils.proposal_target_creator import ProposalTargetCreator


class FakeGpuTensor:
    """The part of a GPU tensor that `to_array` uses."""

    is_cuda = True

    def __init__(self, values):
        self.values = values

    def detach(self):
        return FakeGpuTensor(self.values.detach())

    def cpu(self):
        return self.values


@pytest.fixture
def usable_cupy():
    """`_usable_cupy` with an empty cache, before and after the test."""
    array_tool._usable_cupy.cache_clear()
    yield array_tool._usable_cupy
    array_tool._usable_cupy.cache_clear()


@pytest.fixture
def fake_cupy(monkeypatch, usable_cupy):
    """A stub of CuPy that returns the tensors and streams it is passed."""
    fake = SimpleNamespace(
        arange=np.arange,
        from_dlpack=lambda tensor: ("cupy", tensor.values),
        cuda=SimpleNamespace(ExternalStream=lambda *args: ("stream", args)),
    )
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake


def test_get_xp(monkeypatch, fake_cupy):
    assert array_tool.get_xp(np.zeros(2)) is np
    assert array_tool.get_xp(torch.zeros(2)) is torch
    assert array_tool.get_xp(object()) is fake_cupy


def test_as_array_like():
    values = np.array([1, 2], np.float32)
    assert array_tool.as_array_like(values, np.zeros(5)) is values
    tensor = array_tool.as_array_like(values, torch.zeros(5))
    assert tensor.tolist() == [1, 2]
    assert tensor.dtype == torch.float32


@pytest.mark.parametrize(
    ("dtype", "wide"), [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)]
)
def test_to_float32(dtype, wide):
    assert array_tool.to_float32(torch.ones(2, dtype=dtype)).dtype == wide


def test_float32_is_not_copied():
    tensor = torch.ones(2)
    assert array_tool.to_float32(tensor) is tensor


def test_cpu_tensors_share_their_memory():
    tensor = torch.zeros(3, requires_grad=True)
    as_array = array_tool.to_array(tensor)
    assert isinstance(as_array, np.ndarray)
    as_array[1] = 7
    assert tensor.tolist() == [0, 7, 0]
    back = array_tool.to_tensor(as_array, torch.device("cpu"))
    assert back.data_ptr() == tensor.data_ptr()
    assert not back.requires_grad


def test_tensor_on_a_gpu_reaches_cupy_through_dlpack(fake_cupy):
    owner, values = array_tool.to_array(FakeGpuTensor(torch.ones(2, requires_grad=True)))
    assert owner == "cupy"
    assert values.tolist() == [1, 1]
    assert not values.requires_grad


def test_cupy_works_in_the_stream_of_torch(monkeypatch, fake_cupy):
    streams = {torch.device("cuda", 3): SimpleNamespace(cuda_stream=42)}
    monkeypatch.setattr(torch.cuda, "current_stream", streams.get)
    assert array_tool._torch_stream(torch.device("cuda", 3)) == ("stream", (42, 3))
    assert isinstance(array_tool._torch_stream(torch.device("cpu")), contextlib.nullcontext)


def missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # then the import fails


def broken(monkeypatch):
    def arange(n):
        raise RuntimeError("libnvrtc.so not found")

    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(arange=arange))


@pytest.mark.parametrize(("spoil", "reason"), [(missing, "cupy"), (broken, "libnvrtc.so not found")])
def test_without_cupy_numpy_is_used_after_one_warning(monkeypatch, usable_cupy, spoil, reason):
    spoil(monkeypatch)
    with pytest.warns(UserWarning, match=f"NumPy.*{reason}") as record:
        *arrays, stream = (
            array_tool.to_array(FakeGpuTensor(torch.ones(2))),
            array_tool.to_array(FakeGpuTensor(torch.zeros(2))),
            array_tool._torch_stream(torch.device("cuda", 0)),
        )
    assert len(record) == 1
    np.testing.assert_array_equal(arrays, [[1, 1], [0, 0]])
    assert isinstance(stream, contextlib.nullcontext)


def test_cpu_tensors_do_not_import_cupy(monkeypatch, usable_cupy):
    missing(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(array_tool.call_creator(np.negative, torch.ones(2)), torch.tensor([-1.0, -1]))


class Pair(NamedTuple):
    twice: Any
    label: Any


def test_call_creator():
    def creator(first, second, img_size, rng):
        assert isinstance(first, np.ndarray)
        assert isinstance(second, np.ndarray)
        assert (img_size, rng) == ((3, 5), "rng")
        return Pair(first * 2, second + 1)

    values = torch.tensor([1.5, 2], requires_grad=True)
    out = array_tool.call_creator(creator, values, torch.tensor([4]), (3, 5), "rng")
    assert type(out) is Pair
    assert out.twice.tolist() == [3, 4]
    assert out.label.tolist() == [5]
    assert out.label.dtype == torch.int64
    assert not out.twice.requires_grad


def boxes_and_more(height=20, width=30, n_object=2):
    """Yield the three creators, each with the tensors of an image of so many cells and its other arguments."""
    rng, img_size = np.random.default_rng(0), (16 * height, 16 * width)
    base = torch.from_numpy(generate_anchor_base(anchor_scales=(2, 4, 8)))
    anchor = enumerate_shifted_anchor(base, 16, height, width)
    loc = torch.from_numpy(rng.normal(0, 0.2, anchor.shape).astype(np.float32))
    score = torch.from_numpy(rng.permutation(len(anchor)).astype(np.float32))
    bbox = torch.tensor([[20.5, 30, 100, 90], [200, 250, 300, 470]])[:n_object]
    label = torch.tensor([4, 1])[:n_object]
    yield AnchorTargetCreator(), (bbox, anchor), (img_size, "rng")
    yield ProposalCreator(), (loc, score, anchor), (img_size, 1.5, True)
    yield ProposalTargetCreator(), (anchor, bbox, label), ("rng",)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize(("cells", "n_object"), [((20, 30), 2), ((37, 50), 2), ((20, 30), 0)])
@pytest.mark.parametrize("which", range(3))
def test_creators_agree_on_cpu_and_gpu(which, cells, n_object):
    creator, tensors, others = list(boxes_and_more(*cells, n_object))[which]

    def run(device):
        rest = (np.random.default_rng(5) if other == "rng" else other for other in others)
        out = array_tool.call_creator(creator, *(tensor.to(device) for tensor in tensors), *rest)
        return out if isinstance(out, tuple) else (out,)

    for on_gpu, on_cpu in zip(run("cuda"), run("cpu"), strict=True):
        assert on_gpu.is_cuda
        torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-5, atol=1e-4)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_gpu_tensor_shares_its_memory_with_cupy():
    cupy = pytest.importorskip("cupy")
    tensor = torch.zeros(3, device="cuda", requires_grad=True)
    as_array = array_tool.to_array(tensor)
    assert isinstance(as_array, cupy.ndarray)
    assert as_array.data.ptr == array_tool.to_tensor(as_array, tensor.device).data_ptr() == tensor.data_ptr()
