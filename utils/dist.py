"""Several processes that train one network, each on its own images; `torchrun` starts them.

    torchrun --nproc_per_node=2 train.py train --env=voc

Without torchrun there is a team of one, for which all of this does nothing.
"""
import contextlib
import datetime
import os
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
import torch.distributed

from utils.config import OptionError

_PATIENCE = datetime.timedelta(hours=2)  # others wait while the first fetches a data set


class Team(NamedTuple):
    """The processes that work together, seen from one of them."""

    rank: int = 0  # 0 is the one that writes
    size: int = 1

    def add_up(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by its sum over the processes; they must bring the same shapes in the same order."""
        if self.size > 1:
            for work in [torch.distributed.all_reduce(tensor, async_op=True) for tensor in tensors]:
                work.wait()

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any of the processes; all must ask."""
        if self.size == 1:
            return flag
        on_gpu = torch.distributed.get_backend() == "nccl"
        count = torch.tensor(float(flag), device="cuda" if on_gpu else "cpu")
        self.add_up([count])
        return bool(count)

    def interleave(self, values: list) -> list:
        """Join lists whose entry i is of what came i-th to its process: a, b of one and c of the other to a, c, b."""
        if self.size == 1:
            return values
        parts = [None] * self.size
        torch.distributed.all_gather_object(parts, values)
        return [parts[i % self.size][i // self.size] for i in range(sum(map(len, parts)))]

    @contextlib.contextmanager
    def first_alone(self) -> Iterator[None]:
        """Let the first process through the block before the others enter: it may fetch or draw something."""
        if self.rank:
            self.wait()
        yield
        if self.rank == 0:
            self.wait()

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.size > 1:
            torch.distributed.barrier()

    def leave(self) -> None:
        """Part when all processes are here: one that ends before the others may take them down with it."""
        if self.size > 1:
            self.wait()
            torch.distributed.destroy_process_group()


ALONE = Team()


def join_team(device: torch.device) -> Team:
    """Join the processes that torchrun started with this one, each with a GPU of its own where `device` is one.

    All but the first print nothing from now on. Raises OptionError where there are too few GPUs, or `device` is a
    particular one.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if size == 1 or "LOCAL_RANK" not in os.environ:  # some other program's WORLD_SIZE
        return ALONE
    if device.type == "cuda":
        local, n_gpu = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if device.index is not None or local >= n_gpu:
            raise OptionError(f"--device={device} in process {local} of this machine, which has {n_gpu} GPUs: each "
                              "process takes its own, so write --device=cuda, and --nproc_per_node as there are GPUs")
        torch.cuda.set_device(local)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    if rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    return Team(rank, size)
