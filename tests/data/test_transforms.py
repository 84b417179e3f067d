"""Image, boxes and proposals stay together when flipped: numbers by hand, and a painted box that is found again."""

import numpy as np
import pytest
import torch

from data import Sample
from data.transforms import TrainDataset, flip_bbox, random_flip

BBOX = np.array([[1, 2, 3, 7], [0, 0, 6, 9]], np.float32)


def make_sample(bbox=BBOX, img=None, roi=None):
    img = np.zeros((6, 9, 3), np.uint8) if img is None else img
    bbox = np.asarray(bbox, np.float32).reshape(-1, 4)
    return Sample(img, bbox, np.arange(len(bbox)), np.zeros(len(bbox), bool), "a", roi=roi)


def test_flip_bbox():
    flipped = flip_bbox(BBOX, 10)
    np.testing.assert_array_equal(flipped, [[1, 3, 3, 8], [0, 1, 6, 10]])
    assert flipped.dtype == np.float32
    np.testing.assert_array_equal(flip_bbox(flipped, 10), BBOX)


@pytest.mark.parametrize("prob", [0, 1])
def test_a_painted_box_is_found_again(prob):
    img = np.zeros((6, 9, 3), np.uint8)
    img[1:3, 2:5] = (10, 20, 30)  # not in the middle: its mirror image lies elsewhere
    roi = np.array([[1, 2, 3, 5], [0, 0, 2, 3]], np.float32)
    given = make_sample([[1, 2, 3, 5]], img, roi)
    before = [value.copy() for value in (given.img, given.bbox, given.roi)]
    out = random_flip(given, np.random.default_rng(0), prob)
    y, x = np.nonzero(out.img[:, :, 2] == 30)
    found = [y.min(), x.min(), y.max() + 1, x.max() + 1]
    assert found == ([1, 4, 3, 7] if prob else [1, 2, 3, 5])
    np.testing.assert_array_equal(out.bbox, [found])
    np.testing.assert_array_equal(out.roi, [found, [0, 6, 2, 9] if prob else [0, 0, 2, 3]])
    assert out.bbox.dtype == out.roi.dtype == np.float32
    assert out.img[1, 4].tolist() == [10, 20, 30]  # channels stay in order
    torch.from_numpy(out.img)  # refuses negative strides
    assert (out.label is given.label, out.id) == (True, "a")
    for value, old in zip((given.img, given.bbox, given.roi), before, strict=True):
        np.testing.assert_array_equal(value, old)  # the data set's own arrays are not changed


@pytest.mark.parametrize("prob", [0, 1])
def test_without_boxes_and_proposals(prob):
    out = random_flip(make_sample([]), np.random.default_rng(0), prob)
    assert (out.bbox.shape, out.bbox.dtype, out.roi) == ((0, 4), np.float32, None)


@pytest.mark.parametrize("flip_prob", [0, 0.3, 0.5, 0.8, 1])
def test_the_flip_is_the_first_draw_of_the_samples_generator(flip_prob):
    img = np.zeros((6, 9, 3), np.uint8)
    img[:, 0] = 255
    dataset = TrainDataset([make_sample(img=img)] * 40, seed=5, epoch=3, flip_prob=flip_prob)
    assert len(dataset) == 40
    flipped = []
    for i in range(40):
        rng, sample = np.random.default_rng([5, 3, i]), dataset[i]
        flipped.append(bool(sample.img[0, -1, 0] == 255))
        assert flipped[-1] == (rng.random() < flip_prob)
        assert sample.rng.random() == rng.random()  # the generator travels on, and nothing else was drawn
    assert sum(flipped) / 40 == pytest.approx(flip_prob, abs=0.2)


def test_workers_change_nothing():
    dataset = TrainDataset([make_sample()] * 6, seed=0, epoch=1)
    loader = torch.utils.data.DataLoader(dataset, batch_sampler=[[3, 0], [5]], collate_fn=list, num_workers=1)
    for sample, i in zip([sample for batch in loader for sample in batch], (3, 0, 5), strict=True):
        np.testing.assert_array_equal(sample.bbox, dataset[i].bbox)
        assert sample.rng.random() == dataset[i].rng.random()
