"""Image and boxes stay together: numbers by hand, and a painted box that is found again after resize and flip."""
import numpy as np
import pytest
import torch

from data.transforms import TrainTransform, flip_bbox, scale_bbox
from data.voc import Sample

BBOX = np.array([[1, 2, 3, 7], [0, 0, 6, 9]], np.float32)


def sample(bbox=BBOX, label=(1, 0), img=None):
    img = np.zeros((6, 9, 3), np.uint8) if img is None else img
    label = np.array(label, np.int64)
    return Sample(img, np.asarray(bbox, np.float32), label, np.zeros(len(label), bool), "a")


def prepare(img):
    """Makes images 2 times higher and 3 times wider, pixel by pixel."""
    return torch.from_numpy(img.repeat(2, 0).repeat(3, 1).transpose(2, 0, 1)[None].astype(np.float32)), 2.5


def test_scale_bbox_has_a_ratio_for_each_axis():
    scaled = scale_bbox(BBOX, (6, 9), (12, 27))
    np.testing.assert_array_equal(scaled, [[2, 6, 6, 21], [0, 0, 12, 27]])
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scale_bbox(BBOX, (375, 500), (600, 799)), BBOX * np.float32([1.6, 1.598, 1.6, 1.598]))
    np.testing.assert_allclose(scale_bbox(scaled, (12, 27), (6, 9)), BBOX)


def test_flip_bbox():
    flipped = flip_bbox(BBOX, 10)
    np.testing.assert_array_equal(flipped, [[1, 3, 3, 8], [0, 1, 6, 10]])
    assert flipped.dtype == np.float32
    np.testing.assert_array_equal(flip_bbox(flipped, 10), BBOX)


@pytest.mark.parametrize("flip_prob", [0, 1])
def test_a_painted_box_is_found_again(flip_prob):
    img = np.zeros((6, 9, 3), np.uint8)
    img[1:3, 2:5] = (10, 20, 30)  # not in the middle: its mirror image lies elsewhere
    out = TrainTransform(prepare, flip_prob)(sample([[1, 2, 3, 5]], [1], img), np.random.default_rng(0))
    assert out.img.shape == (1, 3, 12, 27)
    y, x = np.nonzero(out.img[0, 2].numpy() == 30)
    found = [y.min(), x.min(), y.max() + 1, x.max() + 1]
    np.testing.assert_array_equal(out.bbox, [found])
    assert found == ([2, 6, 6, 15] if flip_prob == 0 else [2, 27 - 15, 6, 27 - 6])
    assert len(y) == 4 * 9
    assert out.img[0, :, 3, 13].tolist() == [10, 20, 30]  # rows and channels stay in order


def test_what_the_trainer_gets():
    rng = np.random.default_rng(0)
    out = TrainTransform(prepare)(sample(), rng)
    assert out.bbox.dtype == torch.float32
    assert out.bbox.shape == (2, 4)
    assert out.label.dtype == torch.int64
    assert out.label.tolist() == [1, 0]
    assert out.scale == 2.5
    assert out.rng is rng


def test_tensors_are_on_the_device_of_the_image():
    out = TrainTransform(lambda img: (torch.empty(1, 3, 6, 9, device="meta"), 1.0))(sample(), np.random.default_rng(0))
    assert out.bbox.device.type == out.label.device.type == "meta"


@pytest.mark.parametrize("flip_prob", [0, 0.3, 0.5, 0.8, 1])
def test_the_flip_is_the_first_draw(flip_prob):
    img = np.zeros((6, 9, 3), np.uint8)
    img[:, 0] = 255
    flipped = []
    for seed in range(40):
        rng, same = np.random.default_rng(seed), np.random.default_rng(seed)
        out = TrainTransform(prepare, flip_prob)(sample(img=img), rng)
        flipped.append(bool(out.img[0, 0, 0, -1] == 255))
        assert flipped[-1] == (same.random() < flip_prob)
        assert rng.random() == same.random()  # and nothing else was drawn
    assert sum(flipped) / 40 == pytest.approx(flip_prob, abs=0.2)


def test_flips_half_of_the_images_by_default():
    assert TrainTransform(prepare).flip_prob == 0.5


@pytest.mark.parametrize("flip_prob", [0, 1])
def test_no_boxes(flip_prob):
    out = TrainTransform(prepare, flip_prob)(sample(np.empty((0, 4)), ()), np.random.default_rng(0))
    assert (out.bbox.shape, out.bbox.dtype) == ((0, 4), torch.float32)
    assert (out.label.shape, out.label.dtype) == ((0,), torch.int64)


def test_the_sample_is_left_alone():
    given = sample()
    before = [value.copy() for value in given[:3]]
    TrainTransform(prepare, 1)(given, np.random.default_rng(0))
    for value, old in zip(given[:3], before, strict=True):
        np.testing.assert_array_equal(value, old)
