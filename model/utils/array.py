"""Which library owns an array, and how a tensor becomes an array and comes back, without a copy.

The creators are written once, for NumPy and CuPy (`xp` stands for either); the box functions take torch
tensors too. A tensor on the CPU shares its memory with a NumPy array; one on a GPU reaches CuPy through
DLPack and is worked on in torch's own stream. Where CuPy cannot be used, NumPy serves and a warning says why.
"""
import contextlib
import functools
import warnings

import numpy as np
import torch


def get_xp(array):
    """The module (numpy, cupy or torch) whose functions work on `array`."""
    if isinstance(array, np.ndarray):
        return np
    if isinstance(array, torch.Tensor):
        return torch
    import cupy

    return cupy


def as_array_like(values, array):
    """The NumPy array `values` in the library, and on the device, of `array`."""
    xp = get_xp(array)
    return torch.as_tensor(values, device=array.device) if xp is torch else xp.asarray(values)


def arange_like(n, array):
    """The numbers 0 ... n - 1 in the dtype, the library and on the device of `array`: (n,)."""
    xp = get_xp(array)
    return torch.arange(n, dtype=array.dtype, device=array.device) if xp is torch else xp.arange(n, dtype=array.dtype)


def float32_or_wider(tensor):
    """`tensor`, in float32 if it came in half precision: box arithmetic and losses need the digits."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@functools.cache
def _usable_cupy():
    """The module cupy, or None, after one warning, where it is missing or cannot reach the GPU."""
    try:
        import cupy

        cupy.arange(1).sum()  # loads the libraries that a half-installed CuPy lacks
        return cupy
    except Exception as error:  # ImportError, or any of the errors of a CUDA library that does not fit
        warnings.warn(f"creators run on NumPy, on the CPU: CuPy is not usable here ({error})", stacklevel=3)
        return None


def to_array(tensor):
    """`tensor` as an array without its gradient: NumPy on the CPU, CuPy on a GPU where that is usable."""
    tensor = tensor.detach()
    cupy = _usable_cupy() if tensor.is_cuda else None
    return cupy.from_dlpack(tensor) if cupy else tensor.cpu().numpy()


def to_tensor(array, device):
    """A NumPy or CuPy array as a tensor on `device`."""
    return torch.as_tensor(array, device=device) if isinstance(array, np.ndarray) else torch.from_dlpack(array)


def on_arrays(creator, *args):
    """Calls `creator` with its tensors as arrays and gives its arrays back as tensors, on their device.

    The first argument must be a tensor: it says which device. What a creator returns carries no gradient:
    approximate joint training treats boxes as constants (paper 3.2).
    """
    device = args[0].device
    with _torch_stream(device):
        out = creator(*(to_array(arg) if isinstance(arg, torch.Tensor) else arg for arg in args))
        if isinstance(out, tuple):
            return type(out)(*(to_tensor(array, device) for array in out))
        return to_tensor(out, device)


def _torch_stream(device):
    """A context in which CuPy works in the stream that torch uses on `device`."""
    cupy = _usable_cupy() if device.type == "cuda" else None
    if cupy is None:
        return contextlib.nullcontext()
    return cupy.cuda.ExternalStream(torch.cuda.current_stream(device).cuda_stream, device.index)
