"""Image and boxes together: from a `Sample` of the reader to what the trainer takes.

G: objects. H, W: sides of the image; H', W': after the resize.
"""
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class TrainSample(NamedTuple):
    """One image, ready for the trainer; tensors on the model's device."""

    img: Tensor  # (1, 3, H', W') float32
    bbox: Tensor  # (G, 4) float32, in pixels of `img`
    label: Tensor  # (G,) int64, 0 ... L - 1
    scale: float  # the resize factor
    rng: Any  # np.random.Generator: flip and both target creators draw from it


def scale_bbox(bbox, size, new_size):
    """(G, 4) boxes in an image of size (H, W) as boxes in the same image resized to (H', W')."""
    ratio = np.array([new / old for new, old in zip(new_size, size, strict=True)] * 2, np.float32)  # (4,)
    return bbox * ratio


def flip_bbox(bbox, width):
    """(G, 4) boxes after their image, `width` wide, was mirrored left to right."""
    return np.stack((bbox[:, 0], width - bbox[:, 3], bbox[:, 2], width - bbox[:, 1]), 1)


class TrainTransform:
    """Resizes, normalises and flips (with probability `flip_prob`; paper 3.3 and py-faster-rcnn: 0.5).

    Args:
        prepare: `model.prepare`: (H, W, 3) uint8 -> (1, 3, H', W') on the model's device, and the resize factor.
        flip_prob: how often to mirror an image.
    """

    def __init__(self, prepare, flip_prob=0.5):
        self.prepare = prepare
        self.flip_prob = flip_prob

    def __call__(self, sample, rng):
        """Makes a `TrainSample` of a `Sample`; the flip is the first thing drawn from `rng`."""
        img, scale = self.prepare(sample.img)
        bbox = scale_bbox(sample.bbox, sample.img.shape[:2], img.shape[2:])
        if rng.random() < self.flip_prob:
            img, bbox = img.flip(3), flip_bbox(bbox, img.shape[3])
        return TrainSample(img, _upload(bbox, img.device), _upload(sample.label, img.device), scale, rng)


def _upload(array, device):
    """`array` as a tensor on `device`; a GPU fetches it from pinned memory, and nobody waits."""
    tensor = torch.from_numpy(array)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
