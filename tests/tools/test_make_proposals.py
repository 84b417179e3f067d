"""`tools.make_proposals` with a stand-in for OpenCV, which says what it was asked."""

import json
import sys
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from voc_files import write_voc

from data.proposals import read_proposals
from data.validate import DataError
from tools.make_proposals import ProposalsConfig, main
from utils.config import OptionError

RECTS = [[10, 20, 30, 40], [0, 0, 500, 250], [5, 5, 1, 1]]  # x, y, width, height


class SelectiveSearch:
    def setBaseImage(self, img):
        self.img = img

    def switchToSelectiveSearchFast(self):
        self.img = np.asarray(self.img)

    def process(self):
        assert self.img.shape == (250, 500, 3)
        assert self.img[0, 0].tolist() == [3, 2, 1]  # BGR
        return np.array(RECTS)


class EdgeModel:
    def __init__(self, path):
        self.path = path

    def detectEdges(self, img):
        assert img.dtype == np.float32
        np.testing.assert_allclose(img[0, 0] * 255, [1, 2, 3], rtol=1e-5)
        return img[:, :, 0]

    def computeOrientation(self, edges):
        return edges + 1

    def edgesNms(self, edges, orientation):
        np.testing.assert_array_equal(edges + 1, orientation)
        return edges + 2


class EdgeBoxes:
    def __init__(self, maxBoxes):
        self.n = maxBoxes

    def getBoundingBoxes(self, edges, orientation):
        np.testing.assert_array_equal(edges, orientation + 1)
        return np.array(RECTS[: self.n]), np.ones((self.n, 1))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data set of two images of 50 x 100 pixels, and an OpenCV with the parts that are used."""
    cv2, ximgproc, segmentation = ModuleType("cv2"), ModuleType("ximgproc"), ModuleType("segmentation")
    cv2.ximgproc, ximgproc.segmentation = ximgproc, segmentation
    cv2.resize = lambda img, size: np.broadcast_to(img[0, 0], (*size[::-1], 3))
    segmentation.createSelectiveSearchSegmentation = SelectiveSearch
    ximgproc.createStructuredEdgeDetection, ximgproc.createEdgeBoxes = EdgeModel, EdgeBoxes
    monkeypatch.setitem(sys.modules, "cv2", cv2)
    monkeypatch.chdir(tmp_path)
    img = Image.new("RGB", (100, 50), (1, 2, 3))
    write_voc(tmp_path / "voc", {"a": "", "b": ""}, img=img, suffix=".png")
    write_voc(tmp_path / "voc", {"b": "", "c": ""}, "test", img=img, suffix=".png")
    return tmp_path


def run(**options):
    main(ProposalsConfig(voc_data_dir="voc", splits="trainval,test", out="new/rois.npz", **options))
    return read_proposals("new/rois.npz")


def test_selective_search(folder, capsys):
    rois = run(n_proposals=2)
    assert list(rois) == ["a", "b", "c"]
    for roi in rois.values():
        assert roi.tolist() == [[4, 2, 12, 8], [0, 0, 50, 100]]  # a fifth: the image was searched at 500 pixels
    last = "next: python train.py train --voc-data-dir=voc --train-split=trainval --eval-split=test "
    last += "--proposals-file=new/rois.npz\n"
    printed = capsys.readouterr().out
    assert printed.endswith(f"3 images, 2 proposals each on average, written to new/rois.npz\n{last}")


def test_edge_boxes(folder):
    (folder / "model.yml").touch()
    assert run(method="edge-boxes", edge_model="model.yml", n_proposals=2)["c"].tolist() == [
        [20, 10, 60, 40],
        [0, 0, 250, 500],
    ]
    with pytest.raises(OptionError, match="--edge-model=FILE"):
        run(method="edge-boxes")


def test_an_id_of_two_images_is_refused(folder):
    images, annotations = [{"id": 1, "file_name": "a.png"}], []
    for name in "xy":
        write_voc(folder / name, {"a": ""}, img=Image.new("RGB", (100, 50)), suffix=".png")
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
        (folder / f"{name}.json").write_text(json.dumps(content))
    files = {"coco_images": "x/JPEGImages", "coco_annotations": "x.json"}
    files |= {"coco_eval_images": "y/JPEGImages", "coco_eval_annotations": "y.json"}
    with pytest.raises(DataError, match=r"^a is an image in x/JPEGImages and in y/JPEGImages: rename one of them$"):
        main(ProposalsConfig(data="coco", splits="train,val", out="new/rois.npz", **files))


def test_without_opencv(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(OptionError, match="pip install opencv-contrib"):
        run()
