"""The device, its precision, and several processes that train one network together.

    torchrun --nproc_per_node=2 train.py train --env=voc

Without torchrun there is one process, for which the functions of the second half do nothing.
"""

import contextlib
import ctypes
import datetime
import functools
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist

from utils.command import SIGNALS, handling
from utils.config import OptionError

TIMEOUT = datetime.timedelta(hours=2)  # the others wait while the main process downloads a data set


@functools.cache
def keep_freed_memory() -> None:
    """Have glibc keep the memory of freed tensors, in huge pages, for the next step instead of returning it.

    A training step takes and frees gigabytes, which the system would clear anew: see docs/training.md for the times.
    What oneDNN prepares for each size of image would lie between the pieces: it keeps that of a few steps only.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")  # oneDNN: 1024
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch asks for huge pages
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(-4, 0)  # M_MMAP_MAX: no block has pages of its own
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap never shrinks


def pick_device(name: str, deterministic: bool = False) -> torch.device:
    """Return the device that `--device` means, and make it the current one; see `set_deterministic`.

    Raises:
        OptionError: the name is not valid, or there is no such device.
    """
    keep_freed_memory()
    if deterministic:
        set_deterministic()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise OptionError(f"--device must be auto, cpu, cuda or cuda:N, not {name!r}")
    device = torch.device(name)
    n_gpu = torch.cuda.device_count() if torch.cuda.is_available() else 0  # it counts those of too old a driver, too
    if device.type == "cuda" and (device.index or 0) >= n_gpu:
        raise OptionError(f"--device={name}: torch finds {n_gpu} CUDA devices on this machine that it can use")
    if device.index is not None:
        torch.cuda.set_device(device)  # CuPy uses the current device
    return device


def pick_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the dtype of autocast that `--precision` means: torch.bfloat16, or None for float32 throughout.

    Raises:
        OptionError: the GPU does not support bfloat16.
    """
    if precision == "auto" and device.type == "cuda":
        precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    elif precision == "auto":
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # not in torch 2.9
        precision = "bf16" if capabilities.get("avx512_bf16", False) else "fp32"
    elif precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=True):
        raise OptionError(f"--precision=bf16: {torch.cuda.get_device_name(device)} does not support it, use fp32")
    return torch.bfloat16 if precision == "bf16" else None


def set_deterministic() -> None:
    """Use torch's deterministic algorithms; it warns where it has none, as for RoI pooling's backward pass on a GPU.

    Call this before CUDA is used.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS, see its manual
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)


def init_distributed(device: torch.device) -> None:
    """Join the processes that torchrun started, each with its own GPU if `device` is one.

    All but the main process print nothing from here on.

    Raises:
        OptionError: there are fewer GPUs than processes, or `device` has a number.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or "LOCAL_RANK" not in os.environ:  # else it is not torchrun's
        return
    if device.type == "cuda":
        local_rank, n_gpu = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if device.index is not None or local_rank >= n_gpu:
            raise OptionError(f"several processes need one GPU each: --device=cuda, --nproc_per_node={n_gpu} or less")
        torch.cuda.set_device(local_rank)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    if rank() > 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _is_joined():
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return the number of this process; 0 is the main process, which writes."""
    return dist.get_rank() if _is_joined() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if _is_joined() else 1


def all_reduce(tensors: Iterable[torch.Tensor]) -> None:
    """Replace each tensor by its sum over the processes; all must pass the same shapes in the same order."""
    if world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def any_process(flag: bool) -> bool:
    """Return whether `flag` is true in any process; all must call this."""
    return any(gather_interleaved([flag]))


def gather_interleaved(values: list) -> list:
    """Undo the split `values[rank::world_size]`: [a, b] of process 0 and [c] of process 1 give [a, c, b] in both."""
    size = world_size()
    if size == 1:
        return values
    parts = [None] * size
    dist.all_gather_object(parts, values)
    return [parts[i % size][i // size] for i in range(sum(map(len, parts)))]


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """Let the main process run the block before the others, e.g. to download a file."""
    if rank() > 0:
        barrier()
    yield
    if rank() == 0:
        barrier()


def barrier() -> None:
    """Wait until all processes are here."""
    if world_size() > 1:
        dist.barrier()


def destroy() -> None:
    """Wait for all processes, then leave: one that ends earlier may abort the others."""
    if world_size() > 1:
        barrier()
        dist.destroy_process_group()


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Collect `SIGNALS` in the yielded list instead of stopping; a second one, but for SIGHUP, exits immediately."""
    stop = []

    def handle(number, frame):
        if stop and signal.Signals(number).name != "SIGHUP":  # a terminal that is closed may send that twice
            os._exit(128 + number)
        stop.append(number)
        with contextlib.suppress(OSError):  # the terminal is gone
            os.write(2, b"\nfinishing the step and saving last.pth; once more: exit immediately without saving\n")

    with handling(SIGNALS, handle):
        yield stop


def ignore_signals(*_) -> None:
    """Ignore `SIGNALS`, which reach all processes of a group: for workers, which the training still needs."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
