"""Proposals that come with the data: the file, the windows by hand, and the data set that carries them."""

from types import SimpleNamespace

import numpy as np
import pytest
from voc_files import thing, write_voc

import data
from data.proposals import WINDOWS, read_proposals, sliding_windows, write_proposals
from data.transforms import TrainDataset
from data.validate import DataError

ROIS = {
    "a": np.array([[1, 2, 30, 58], [0, 0, 5.5, 60]]),
    "folder/b": np.zeros((0, 4)),
    "file": np.array([[3, 4, 5, 6]]),
}


def test_a_file_is_read_as_it_was_written(tmp_path):
    write_proposals(tmp_path / "rois.npz", ROIS)
    read = read_proposals(tmp_path / "rois.npz")
    assert list(read) == list(ROIS)
    for image_id, roi in ROIS.items():
        np.testing.assert_array_equal(read[image_id], roi)
        assert read[image_id].dtype == np.float32


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"ids": ["a"], "counts": [1]}, "'roi is not a file in the archive'"),
        ({"ids": ["a"], "counts": [2], "roi": [[1, 2, 3, 4]]}, "sum of counts"),
        ({"ids": ["a"], "counts": [1], "roi": [[9, 2, 3, 4]]}, "y_min"),
    ],
)
def test_another_file_is_refused(tmp_path, arrays, words):
    np.savez(tmp_path / "rois.npz", **{name: np.array(values) for name, values in arrays.items()})
    with pytest.raises(DataError, match=rf"rois\.npz is not a file of .*{words}"):
        read_proposals(tmp_path / "rois.npz")


def test_a_missing_or_damaged_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"--proposals-file=no\.npz is neither"):
        read_proposals("no.npz")
    (tmp_path / "rois.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"rois\.npz is not a file of"):
        read_proposals(tmp_path / "rois.npz")


def test_windows_by_hand():
    # 40 x 60 pixels are resized by 0.8 to 32 x 48: two rows of three cells; a window of 16 pixels has 20 in the image
    windows = sliding_windows(40, 60, min_size=32, max_size=100, anchor_scales=(1, 2), anchor_ratios=(1, 4))
    assert windows.shape == (2 * 3 * 4, 4)
    assert windows.dtype == np.float32
    assert windows[0].tolist() == [0, 0, 20, 20]
    assert windows[1].tolist() == [0, 0, 30, 30]  # twice the side, clipped
    assert windows[2].tolist() == [0, 5, 30, 15]  # four times as high as wide: 40 x 10, clipped
    last = windows[-4:].tolist()
    assert last[0] == [20, 40, 40, 60]
    assert last[2] == [10, 45, 40, 55]


@pytest.fixture
def options(tmp_path):
    write_voc(tmp_path / "voc", {"a": thing(extra="<difficult>1</difficult>") + thing("dog"), "b": ""})
    write_proposals(tmp_path / "rois.npz", {"b": ROIS["file"], "a": ROIS["a"]})  # in another order
    return SimpleNamespace(voc_data_dir=tmp_path / "voc", proposals_file=str(tmp_path / "rois.npz"))


def test_samples_carry_their_proposals(options):
    (dataset,) = data.build("voc", options, ["trainval"])
    assert (len(dataset), dataset.ids, dataset.classes) == (2, ["a", "b"], ("cat", "dog"))
    np.testing.assert_array_equal(dataset[0].roi, ROIS["a"])
    np.testing.assert_array_equal(dataset[1].roi, ROIS["file"])
    easy = dataset.without_difficult()
    assert (len(dataset.bboxes[0]), len(easy.bboxes[0]), len(easy[0].bbox)) == (2, 1, 1)
    np.testing.assert_array_equal(easy[0].roi, ROIS["a"])
    flipped = TrainDataset(dataset, seed=0, epoch=0, flip_prob=1)[0]
    assert flipped.roi.tolist() == [[1, 2, 30, 58], [0, 0, 5.5, 60]]  # an image of 60 pixels
    assert TrainDataset(dataset, seed=0, epoch=0, flip_prob=1)[1].roi.tolist() == [[3, 54, 5, 56]]


def test_samples_carry_windows(options):
    options.proposals_file, options.min_size, options.anchor_scales = WINDOWS, 32, (1,)
    (dataset,) = data.build("voc", options, ["trainval"])
    np.testing.assert_array_equal(dataset[1].roi, sliding_windows(40, 60, 32, 1000, (1,), (0.5, 1, 2)))


def test_images_that_the_file_lacks_are_named(options, tmp_path):
    write_proposals(tmp_path / "rois.npz", {"a": ROIS["a"]})
    with pytest.raises(DataError, match=r"no proposals for 1 of the 2 images of trainval, e\.g\. b"):
        data.build("voc", options, ["trainval"])
