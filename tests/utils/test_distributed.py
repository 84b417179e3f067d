"""The device and precision that an option means; one process, and two together (tests/test_cli.py trains with two)."""

import datetime
import errno
import io
import os
import signal
import socket
import subprocess
import sys

import pytest
import torch
import torch.multiprocessing

from utils import distributed
from utils.config import OptionError
from utils.distributed import pick_device, pick_dtype

SIZES = """
import torch
from utils.distributed import keep_freed_memory

keep_freed_memory()
for side in [*range(8, 158), 8]:
    torch.nn.functional.conv2d(torch.ones(1, 64, side, 64), torch.ones(64, 64, 3, 3))
"""


def test_what_onednn_prepares_for_a_size_is_kept_for_a_few_steps_only():
    environ = {name: value for name, value in os.environ.items() if name != "ONEDNN_PRIMITIVE_CACHE_CAPACITY"}
    environ |= {"ONEDNN_VERBOSE": "profile_create", "PYTHONPATH": ".", "OMP_NUM_THREADS": "1"}
    environs = environ, environ | {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024"}  # a user's own value wins
    started = [subprocess.Popen([sys.executable, "-c", SIZES], stdout=subprocess.PIPE, env=env) for env in environs]
    lines = [process.communicate()[0].decode().strip().rpartition("\n")[2] for process in started]
    assert [line.split(",")[3] for line in lines] == ["create:cache_miss", "create:cache_hit"]


def test_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # of a driver that is too old
    assert pick_device("auto") == torch.device("cpu")
    assert pick_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:0"):
        with pytest.raises(OptionError, match=f"--device={name}: torch finds 0 CUDA devices"):
            pick_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    current = [0]
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(device.index))
    for name in ("auto", "cuda"):  # without a number: the current one
        assert pick_device(name) == torch.device("cuda")
    assert current == [0]
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    assert current[-1] == 1
    with pytest.raises(OptionError, match="--device=cuda:2: torch finds 2 CUDA devices"):
        pick_device("cuda:2")
    for name in ("gpu", "mps", "cuda:x"):
        with pytest.raises(OptionError, match=f"--device must be auto, cpu, cuda or cuda:N, not '{name}'"):
            pick_device(name)


def test_bf16_that_a_gpu_lacks(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old one")
    with pytest.raises(OptionError, match="--precision=bf16: an old one does not support it, use fp32"):
        pick_dtype("bf16", torch.device("cuda"))
    assert pick_dtype("auto", torch.device("cuda")) is None
    assert pick_dtype("bf16", torch.device("cpu")) is torch.bfloat16


@pytest.mark.parametrize("fast", ["cpu", "cuda"])
def test_dtype(monkeypatch, fast):
    # raising=False: torch 2.9 has no get_capabilities
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": fast == "cpu"}, raising=False)
    on_cuda = {True: True, False: fast == "cuda"}  # by including_emulation
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: on_cuda[including_emulation])
    for name in ("cpu", "cuda"):
        device = torch.device(name)
        assert pick_dtype("auto", device) == (torch.bfloat16 if name == fast else None)
        assert pick_dtype("bf16", device) == torch.bfloat16
        assert pick_dtype("fp32", device) is None
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert pick_dtype("auto", torch.device("cpu")) is None


def test_deterministic(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    try:
        distributed.set_deterministic()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()  # RoI pooling has no such backward pass on a GPU
        assert not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("size", [None, "4"])
def test_one_process_has_nothing_to_do(monkeypatch, size):
    monkeypatch.delenv("LOCAL_RANK", raising=False)  # without it WORLD_SIZE is not torchrun's
    monkeypatch.setenv("WORLD_SIZE", size) if size else monkeypatch.delenv("WORLD_SIZE", raising=False)
    distributed.init_distributed(torch.device("cpu"))
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    tensor = torch.tensor([1.0, 2])
    distributed.all_reduce([tensor])
    assert tensor.tolist() == [1, 2]
    assert [distributed.any_process(flag) for flag in (True, False)] == [True, False]
    assert distributed.gather_interleaved([3, 1]) == [3, 1]
    with distributed.main_process_first():
        distributed.barrier()
    distributed.destroy()
    assert not torch.distributed.is_initialized()


def test_a_download_may_take_an_hour():
    assert datetime.timedelta(hours=1) < distributed.TIMEOUT


@pytest.mark.parametrize(("device", "local"), [("cuda:0", "0"), ("cuda", "2")])
def test_each_process_needs_a_gpu_of_its_own(monkeypatch, device, local):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", local)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(OptionError, match=r"several processes need one GPU each: .*=2 or"):
        distributed.init_distributed(torch.device(device))


@pytest.mark.parametrize("rank", [0, 1])
def test_the_main_process_enters_first(monkeypatch, rank):
    order = []
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "barrier", lambda: order.append("wait"))
    with distributed.main_process_first():
        order.append("block")
    assert order == [["block", "wait"], ["wait", "block"]][rank]


def work(rank, port, queue):
    sys.stdout = io.StringIO()
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    distributed.init_distributed(torch.device("cpu"))
    print("said")
    tensors = [torch.tensor([1.0, 10]) * (rank + 1), torch.tensor(float(rank))]
    distributed.all_reduce(tensors)
    flags = [distributed.any_process(flag) for flag in (rank == 1, False)]
    joined = distributed.gather_interleaved([["a", "b", "c"], ["d", "e"]][rank])
    said = sys.stdout.getvalue() if isinstance(sys.stdout, io.StringIO) else ""
    at = distributed.rank(), distributed.world_size()
    queue.put((at, [tensor.tolist() for tensor in tensors], flags, joined, said))
    distributed.destroy()


def test_two_processes():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=work, args=(rank, port, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    found = sorted(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for rank, (at, tensors, flags, joined, said) in enumerate(found):
        assert at == (rank, 2)
        assert tensors == [[3, 30], 1]
        assert flags == [True, False]
        assert joined == ["a", "d", "b", "e", "c"]
        assert said == ["said\n", ""][rank]


def test_an_ignored_signal_stays_ignored():
    """As SIGHUP under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with distributed.catch_signals() as stop:
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            signal.raise_signal(signal.SIGTERM)
        assert (stop, signal.getsignal(signal.SIGHUP)) == ([signal.SIGTERM], signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGTERM])
def test_a_second_sighup_ends_nothing(monkeypatch, first):
    exits = []
    monkeypatch.setattr(distributed.os, "_exit", exits.append)
    with distributed.catch_signals() as stop:
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGHUP)
        assert (stop[0], exits) == (first, [])
        signal.raise_signal(signal.SIGINT)
    assert exits == [130]


def test_a_signal_without_a_terminal(monkeypatch):
    def write(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(distributed.os, "write", write)
    with distributed.catch_signals() as stop:
        signal.raise_signal(signal.SIGTERM)
    assert stop == [signal.SIGTERM]
