"""Dispatch between NumPy, CuPy and torch, and zero-copy conversion between them.

The creators are written once, for NumPy and CuPy (`xp` stands for either); the box functions also take torch tensors.
A tensor on the CPU shares its memory with a NumPy array; one on a GPU reaches CuPy through DLPack and is processed on
torch's own stream. Without a usable CuPy the creators fall back to NumPy, with a warning.
"""

import contextlib
import functools
import warnings

import numpy as np
import torch


def get_xp(array):
    """Return the module (numpy, cupy or torch) whose functions work on `array`."""
    if isinstance(array, np.ndarray):
        return np
    if isinstance(array, torch.Tensor):
        return torch
    import cupy

    return cupy


def as_array_like(values, array):
    """Convert the NumPy array `values` to the library and device of `array`."""
    xp = get_xp(array)
    return torch.as_tensor(values, device=array.device) if xp is torch else xp.asarray(values)


def arange_like(n, array):
    """Return 0 ... n - 1, (n,), in the dtype, library and device of `array`."""
    xp = get_xp(array)
    return torch.arange(n, dtype=array.dtype, device=array.device) if xp is torch else xp.arange(n, dtype=array.dtype)


def to_float32(tensor):
    """Convert half precision to float32; leave wider types as they are. Box arithmetic and losses need the digits."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@functools.cache
def _usable_cupy():
    """Return the module cupy; None, after one warning, if it is missing or cannot reach the GPU."""
    try:
        import cupy

        cupy.arange(1).sum()  # loads the libraries that a half-installed CuPy lacks
        return cupy
    except Exception as error:  # ImportError, or any error of a CUDA library that does not fit
        warnings.warn(f"the creators run on NumPy, on the CPU: CuPy is not usable here ({error})", stacklevel=3)
        return None


def to_array(tensor):
    """Convert `tensor`, without its gradient, to NumPy on the CPU, to CuPy on a GPU where that is usable."""
    tensor = tensor.detach()
    cupy = _usable_cupy() if tensor.is_cuda else None
    return cupy.from_dlpack(tensor) if cupy else tensor.cpu().numpy()


def to_tensor(array, device):
    """Convert a NumPy or CuPy array to a tensor on `device`."""
    return torch.as_tensor(array, device=device) if isinstance(array, np.ndarray) else torch.from_dlpack(array)


def upload(array, device):
    """Copy a NumPy array to `device`; a GPU fetches it from pinned memory, so that nothing waits."""
    tensor = torch.from_numpy(array)
    return (tensor.pin_memory() if torch.device(device).type == "cuda" else tensor).to(device, non_blocking=True)


def call_creator(creator, *args):
    """Call `creator` with its tensors as arrays and return its arrays as tensors.

    Args:
        creator: one of the three creators, or any function of arrays.
        *args: tensors and other values; the first must be a tensor, whose device is that of the results.

    Returns:
        What `creator` returns, arrays as tensors without gradient: approximate joint training treats boxes as
        constants (paper 3.2).
    """
    device = args[0].device
    with _torch_stream(device):
        out = creator(*(to_array(arg) if isinstance(arg, torch.Tensor) else arg for arg in args))
        if isinstance(out, tuple):
            return type(out)(*(to_tensor(array, device) for array in out))
        return to_tensor(out, device)


def _torch_stream(device):
    """Let CuPy work on the stream that torch uses on `device`."""
    cupy = _usable_cupy() if device.type == "cuda" else None
    if cupy is None:
        return contextlib.nullcontext()
    return cupy.cuda.ExternalStream(torch.cuda.current_stream(device).cuda_stream, device.index)
