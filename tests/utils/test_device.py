"""The machine: which device and precision an option means, and what can be made to repeat itself."""
import os

import pytest
import torch

from utils.config import OptionError
from utils.device import be_deterministic, pick_device, pick_dtype


def test_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert pick_device("auto") == torch.device("cpu")
    assert pick_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:0"):
        with pytest.raises(OptionError, match=f"--device={name}: this machine has 0 CUDA devices"):
            pick_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    current = [0]
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(int(getattr(device, "index", device))))
    for name in ("auto", "cuda"):  # without a number: of these torch.cuda.set_device wants none
        assert pick_device(name).type == "cuda"
    assert pick_device("cpu") == torch.device("cpu")
    assert current[-1] == 0
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    assert current[-1] == 1
    with pytest.raises(OptionError, match="--device=cuda:2: this machine has 2 CUDA devices"):
        pick_device("cuda:2")
    for name in ("gpu", "mps", "cuda:x"):
        with pytest.raises(OptionError, match=f"--device must be auto, cpu, cuda or cuda:N, not '{name}'"):
            pick_device(name)


def test_bf16_that_a_gpu_lacks(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old one")
    with pytest.raises(OptionError, match="--precision=bf16: an old one has none: take fp32"):
        pick_dtype("bf16", torch.device("cuda"))
    assert pick_dtype("auto", torch.device("cuda")) is None
    assert pick_dtype("bf16", torch.device("cpu")) is torch.bfloat16


@pytest.mark.parametrize("fast", ["cpu", "cuda"])
def test_dtype(monkeypatch, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": fast == "cpu"})
    on_cuda = {True: True, False: fast == "cuda"}  # by including_emulation
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: on_cuda[including_emulation])
    for name in ("cpu", "cuda"):
        device = torch.device(name)
        assert pick_dtype("auto", device) == (torch.bfloat16 if name == fast else None)
        assert pick_dtype("bf16", device) == torch.bfloat16
        assert pick_dtype("fp32", device) is None
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {})
    assert pick_dtype("auto", torch.device("cpu")) is None


def test_torch_that_does_not_tell_what_the_processor_can(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as in torch 2.9
    assert pick_dtype("auto", torch.device("cpu")) is None


def test_deterministic(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    try:
        be_deterministic()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()  # RoI pooling has no such backward pass on a GPU
        assert not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
