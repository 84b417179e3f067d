"""How much of the input one cell of a feature map sees: the window that its layers span together.

A layer is a pair (kernel, stride), as convolutions and poolings have them; padding moves the window, never widens it.
"""
from torch import nn


def window_layers(module):
    """The (kernel, stride) of every convolution and max pooling in `module`, in their order."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.MaxPool2d)]
    return [(_side(layer.kernel_size), _side(layer.stride)) for layer in layers]


def receptive_field(layers):
    """Side of the window of a cell, and the distance between the windows of neighbours.

    Args:
        layers: list of (kernel, stride), from the input on.

    Returns:
        (side, stride), both in pixels of the input. A kernel of k cells adds (k - 1) times the stride so far.
    """
    side, step = 1, 1
    for kernel, stride in layers:
        side += (kernel - 1) * step
        step *= stride
    return side, step


def _side(size):
    """The one number of a square (k, k), or of k."""
    height, width = size if isinstance(size, tuple) else (size, size)
    if height != width:
        raise ValueError(f"a window of {height} x {width} has no one side: only square layers are counted")
    return height
