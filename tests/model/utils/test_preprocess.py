"""Preprocessing of one image: sizes, the resize against scikit-image, normalisation."""

import math
import re

import numpy as np
import pytest
import skimage.transform
import torch

from model.utils.preprocess import TORCHVISION, TORCHVISION_CAFFE, Preprocessing, prepare, resized_size

PLAIN = Preprocessing((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1.0, "RGB")
CAFFE = Preprocessing((122.5, 116.0, 103.0), (1.0, 2.0, 4.0), 255.0, "BGR")


def random_img(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((375, 500), (600, 800, 1.6)),
        ((500, 375), (800, 600, 1.6)),
        ((300, 600), (500, 1000, 1000 / 600)),  # the longer side decides
        ((1200, 1800), (600, 900, 0.5)),
        ((333, 500), (600, 901, 600 / 333)),  # 900.9
        ((500, 333), (901, 600, 600 / 333)),
        ((4000, 1), (1000, 16, 0.25)),  # no side vanishes
    ],
)
def test_resized_size(size, expected):
    assert resized_size(*size, 600, 1000, min_side=16) == expected


def test_sides_may_be_rounded_down():
    assert resized_size(333, 500, 600, 1000, rounding=math.floor) == (600, 900, 600 / 333)  # 900.9


@pytest.mark.parametrize(("size", "min_size"), [((20, 31), 50), ((60, 47), 20)])
def test_resize_is_that_of_scikit_image(size, min_size):
    img = random_img(*size)
    pixel, scale = prepare(img, PLAIN, min_size, 1000, "cpu")
    expected = skimage.transform.resize(img / 255, pixel.shape[2:], order=1, mode="edge", anti_aliasing=False)
    assert scale == min_size / min(size)
    assert min(pixel.shape[2:]) == min_size
    inner = slice(2, -2)
    np.testing.assert_allclose(pixel[0].permute(1, 2, 0)[inner, inner], expected[inner, inner], atol=2e-5)


@pytest.mark.parametrize(
    ("preprocessing", "expected"),
    [
        (TORCHVISION, [(51 / 255 - 0.485) / 0.229, (102 / 255 - 0.456) / 0.224, (204 / 255 - 0.406) / 0.225]),
        (TORCHVISION_CAFFE, [51 - 123, 102 - 117, 204 - 104]),
        (CAFFE, [(204 - 103) / 4, (102 - 116) / 2, 51 - 122.5]),  # blue first, mean and std with it
    ],
)
def test_normalisation(preprocessing, expected):
    img = np.full((17, 20, 3), (51, 102, 204), np.uint8)
    pixel, scale = prepare(img, preprocessing, 17, 20, "cpu")
    assert scale == 1
    assert pixel.shape == (1, 3, 17, 20)
    np.testing.assert_allclose(pixel[0, :, 1, 2], expected, rtol=1e-5)


@pytest.mark.parametrize("preprocessing", [TORCHVISION, CAFFE])
def test_result_is_float32_and_channels_last(preprocessing):
    pixel, _ = prepare(random_img(10, 14), preprocessing, 20, 40, "cpu")
    assert pixel.dtype == torch.float32
    assert pixel.shape == (1, 3, 20, 28)
    assert pixel.is_contiguous(memory_format=torch.channels_last)


def test_mirrored_view():
    img = random_img(10, 14)
    pixel, _ = prepare(img, TORCHVISION, 20, 40, "cpu")
    mirrored, _ = prepare(img[:, ::-1], TORCHVISION, 20, 40, "cpu")  # its strides are negative
    torch.testing.assert_close(mirrored, pixel.flip(3))


@pytest.mark.parametrize(
    ("img", "found"),
    [
        (np.zeros((4, 6, 3), np.float32), "float32 (4, 6, 3)"),
        (np.zeros((4, 6), np.uint8), "uint8 (4, 6)"),
        (np.zeros((4, 6, 4), np.uint8), "uint8 (4, 6, 4)"),
        (np.zeros((3, 4, 6), np.uint8), "uint8 (3, 4, 6)"),
        (np.zeros((0, 6, 3), np.uint8), "uint8 (0, 6, 3)"),
        (torch.zeros((4, 6, 3), dtype=torch.uint8), "Tensor"),
        ("cat.jpg", "str"),
    ],
)
def test_other_inputs_are_refused_by_name(img, found):
    with pytest.raises(ValueError, match=re.escape(f"(H, W, 3) uint8 RGB array, this is {found}")):
        prepare(img, PLAIN, 4, 6, "cpu")
