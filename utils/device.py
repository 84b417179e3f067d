"""The machine: which device, which precision, how memory is kept, what can be made to repeat itself."""
import ctypes
import functools
import os
import re
import sys

import torch

from utils.config import OptionError


def pick_device(name):
    """The torch.device that `--device` means; to be called before the first tensor is made."""
    _keep_memory()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise OptionError(f"--device must be auto, cpu, cuda or cuda:N, not {name!r}")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OptionError(f"--device={name}: this machine has {torch.cuda.device_count()} CUDA devices for torch")
    if device.type == "cuda" and device.index is not None:  # without a number it is the current one
        torch.cuda.set_device(device)  # CuPy works on that
    return device


@functools.cache
def _keep_memory():
    """Keeps the memory that tensors on the CPU leave, in huge pages, instead of giving it back to the system.

    A training step of VGG16 takes and leaves gigabytes; having the system clear them anew took a quarter to a half of
    the step where it was tried. For Linux with glibc; elsewhere nothing happens.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch asks for huge pages
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(-4, 0)  # M_MMAP_MAX: no block gets pages of its own, which would be given back with it
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never give back the end of the heap


def pick_dtype(precision, device):
    """What autocast computes in, torch.bfloat16 or None (float32 throughout), for `--precision`."""
    if precision == "auto":
        fast = (torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else
                getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16", False))  # torch 2.9 does not tell
        precision = "bf16" if fast else "fp32"
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(
            including_emulation=True):
        raise OptionError(f"--precision=bf16: {torch.cuda.get_device_name(device)} has none: take fp32")
    return torch.bfloat16 if precision == "bf16" else None


def be_deterministic():
    """Has torch take its deterministic algorithms, and warn where it has none (`--deterministic`).

    To be called before CUDA is used. On a GPU the backward pass of RoI pooling adds in no fixed order all the same.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS is not deterministic (its manual)
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
