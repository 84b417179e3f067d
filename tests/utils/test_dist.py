"""A team of processes: what one does alone, and two together (tests/test_cli.py trains with two)."""
import datetime
import io
import sys

import pytest
import torch
import torch.multiprocessing

from utils import dist
from utils.config import OptionError
from utils.dist import ALONE, Team, join_team


def test_alone_nothing_happens(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    tensor = torch.tensor([1.0, 2])
    ALONE.add_up([tensor])
    ALONE.wait()
    ALONE.leave()
    assert tensor.tolist() == [1, 2]
    assert ALONE.interleave([3, 1]) == [3, 1]
    with ALONE.first_alone():
        pass
    assert join_team(torch.device("cpu")) is ALONE
    assert ALONE == (0, 1)
    assert datetime.timedelta(hours=1) < dist._PATIENCE


def test_a_world_size_of_somebody_else(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert join_team(torch.device("cpu")) is ALONE


@pytest.mark.parametrize(("device", "local"), [("cuda:0", "0"), ("cuda", "2")])
def test_each_process_needs_a_gpu_of_its_own(monkeypatch, device, local):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", local)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(OptionError, match=f"--device={device} in process {local} of this machine, which has 2 GPUs"):
        join_team(torch.device(device))


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_enters_alone(monkeypatch, rank):
    order = []
    monkeypatch.setattr(Team, "wait", lambda team: order.append("wait"))
    with Team(rank, 2).first_alone():
        order.append("block")
    assert order == [["block", "wait"], ["wait", "block"]][rank]


def work(rank, port, queue):
    import os

    sys.stdout = io.StringIO()
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "localhost",
                   "MASTER_PORT": str(port)}
    team = join_team(torch.device("cpu"))
    print("said")
    tensors = [torch.tensor([1.0, 10]) * (rank + 1), torch.tensor(float(rank))]
    team.add_up(tensors)
    joined = team.interleave([["a", "b", "c"], ["d", "e"]][rank])
    said = sys.stdout.getvalue() if isinstance(sys.stdout, io.StringIO) else ""
    queue.put((team, [tensor.tolist() for tensor in tensors], joined, said))
    team.wait()


def test_two_processes():
    import socket

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
    for rank, (team, tensors, joined, said) in enumerate(found):
        assert team == (rank, 2)
        assert tensors == [[3, 30], 1]
        assert joined == ["a", "d", "b", "e", "c"]
        assert said == ["said\n", ""][rank]
