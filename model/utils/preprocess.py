"""Resize and normalise one image as the weights of the extractor expect it.

H, W: sides of the image; H', W': after the resize.
"""

import functools
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from model.utils.array_tool import upload


class Preprocessing(NamedTuple):
    """Input normalisation that weights were trained with. Plain values: a checkpoint stores them."""

    mean: tuple[float, float, float]  # of R, G, B, in units of `value_range`
    std: tuple[float, float, float]  # of R, G, B
    value_range: float  # largest value of an input: 1 or 255
    channel_order: str  # "RGB" or "BGR": mean and std are permuted with the channels


TORCHVISION = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1.0, "RGB")
# networks trained with Caffe, and those converted from them
CAFFE = Preprocessing((122.7717, 115.9465, 102.9801), (1.0, 1.0, 1.0), 255.0, "BGR")
# torchvision's copy of the Caffe features; torchvision documents its mean as 0.48235 0.45882 0.40784 of 255
TORCHVISION_CAFFE = Preprocessing((123.0, 117.0, 104.0), (1.0, 1.0, 1.0), 255.0, "RGB")
# simple-faster-rcnn-pytorch subtracts the mean of R from B and that of B from R; its checkpoints were trained that way
CAFFE_RGB_MEAN = CAFFE._replace(mean=CAFFE.mean[::-1])
CHAINERCV = CAFFE._replace(channel_order="RGB")
BY_NAME = {"torchvision": TORCHVISION, "caffe": CAFFE, "caffe-rgb-mean": CAFFE_RGB_MEAN, "chainercv": CHAINERCV}


def resized_size(height, width, min_size, max_size, min_side=1, rounding=round):
    """Compute the size of the resized image (paper 3.3, the longer side: Fast R-CNN 5.2).

    Args:
        height, width: of the image.
        min_size: of the shorter side after the resize; the smaller of the two factors wins.
        max_size: of the longer side.
        min_side: smallest side; a thinner image would have no cell in the feature map.
        rounding: round, or math.floor as torchvision's detectors.

    Returns:
        H', W' and the resize factor.
    """
    scale = min(min_size / min(height, width), max_size / max(height, width))
    return max(rounding(height * scale), min_side), max(rounding(width * scale), min_side), scale


def prepare(img, preprocessing, min_size, max_size, device, min_side=1, rounding=round):
    """Turn one image into the input of the network.

    The uint8 pixels are copied to the device, converted to float32, resized (bilinear, no anti-aliasing, half-pixel
    centres) and normalised; they are never rounded to uint8 again.

    Args:
        img: (H, W, 3) uint8 RGB array.
        preprocessing: `Preprocessing` of the weights.
        min_size, max_size, min_side, rounding: see `resized_size`.
        device: of the result.

    Returns:
        (1, 3, H', W') float32 tensor, and the resize factor.

    Raises:
        ValueError: `img` has another shape or type.
    """
    if not (isinstance(img, np.ndarray) and img.dtype == np.uint8 and img.ndim == 3 and img.shape[2] == 3 and img.size):
        found = f"{img.dtype} {img.shape}" if isinstance(img, np.ndarray) else type(img).__name__
        raise ValueError(f"an image must be an (H, W, 3) uint8 RGB array, this is {found}")
    height, width, scale = resized_size(*img.shape[:2], min_size, max_size, min_side, rounding)
    x = upload(img.copy(), device)[None].permute(0, 3, 1, 2).float()  # (1, 3, H, W)
    x = F.interpolate(x, (height, width), mode="bilinear", align_corners=False)  # (1, 3, H', W')
    mean, std = (_per_channel(tuple(values), device) for values in (preprocessing.mean, preprocessing.std))
    x = (x * (preprocessing.value_range / 255) - mean) / std
    if preprocessing.channel_order == "BGR":
        x = x.flip(1)
    return x, scale


@functools.cache  # a copy from pageable host memory makes a GPU wait: once per device is enough
def _per_channel(values, device):
    """Return three numbers, of R, G and B, as a (3, 1, 1) tensor."""
    return torch.tensor(values, device=device).view(3, 1, 1)
