"""predict.py: which images, what their pictures are called, COCO's format, images that cannot be read."""
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import predict
from data.voc import DataError
from predict import coco_ids, coco_rows, find_images, main, picture_names, shrink
from utils.config import OptionError, PredictConfig


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


# Which images


def test_images_are_files_and_those_in_folders_by_name(tmp_path):
    touch(tmp_path, "b.JPG", "a.png", "c.jpeg", "note.txt", "deep/z.png", "one.bmp", "folder.png/y.png")
    found = find_images([str(tmp_path / "one.bmp"), str(tmp_path), tmp_path / "a.png"])
    assert [path.name for path in found] == ["one.bmp", "a.png", "b.JPG", "c.jpeg"]  # each once


def test_patterns_match_images(tmp_path):
    touch(tmp_path, "b2.JPG", "a1.png", "a2.png", "a3.txt", "deep/er/a4.jpg", "deep/b.png", "x[1].png")
    relative = [[str(path.relative_to(tmp_path)) for path in find_images([tmp_path / pattern])]
                for pattern in ("a*", "?2.*", "**/a*", "deep/**", "x[1].png", "[bx]*")]
    assert relative == [["a1.png", "a2.png"], ["a2.png", "b2.JPG"], ["a1.png", "a2.png", "deep/er/a4.jpg"],
                        ["deep/b.png", "deep/er/a4.jpg"], ["x[1].png"], ["b2.JPG", "x[1].png"]]


def test_images_that_are_not_there_are_named(tmp_path):
    touch(tmp_path, "a.png", "note.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OptionError, match="name at least one image"):
        find_images([])
    with pytest.raises(DataError, match=r"empty holds no image \(\.jpg, \.jpeg, \.png\)"):
        find_images([tmp_path / "a.png", tmp_path / "empty"])
    with pytest.raises(DataError, match=r"no\.png is neither an image nor a folder"):
        find_images([tmp_path / "no.png"])
    with pytest.raises(DataError, match=r"n\* is neither an image nor a folder, and as a pattern matches no image"):
        find_images([tmp_path / "n*"])


# Names


def test_a_picture_is_called_after_its_image_and_after_its_folder_where_that_is_not_enough(tmp_path):
    names = ["b.png", "cam1/a.jpg", "cam1/c.jpg", "cam2/A.jpg", "d.jpg", "d.png", "cam1/contact_sheet.png"]
    assert picture_names([tmp_path / name for name in names]) == [
        "b", "cam1_a", "c", "cam2_A", "d.jpg", "d.png", "cam1_contact_sheet"]
    assert picture_names([tmp_path / "cam1/a.jpg"]) == ["a"]
    odd = [tmp_path / name for name in ("cam1/a.jpg", "cam2/a.jpg", "cam1_a.jpg", "cam1_a.jpg.jpg")]
    assert picture_names(odd[:3]) == ["cam1_a.jpg", "cam2_a", "cam1_a"]
    with pytest.raises(OptionError, match=r"cam1_a\.jpg\.png would be the picture of several images"):
        picture_names(odd)


def test_image_ids_are_numbers_where_all_names_are():
    assert coco_ids(["000139", "7"]) == [139, 7]
    assert coco_ids(["000139", "12_3"]) == ["000139", "12_3"]
    with pytest.raises(OptionError, match="several images would have the image_id 7"):
        coco_ids(["007", "8", "7"])


# COCO


def test_pycocotools_takes_the_results(tmp_path):
    gt = {"images": [{"id": 139}, {"id": 7}], "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
          "annotations": [
              {"id": 1, "image_id": 139, "category_id": 2, "bbox": [10, 20, 30, 40], "area": 1200, "iscrowd": 0},
              {"id": 2, "image_id": 7, "category_id": 1, "bbox": [5.5, 3, 100, 50], "area": 5000, "iscrowd": 0}]}
    rows = [{"image": "x/000139.jpg", "bbox": [20.0, 10.0, 60.0, 40.0], "label": 1, "name": "dog", "score": 0.75},
            {"image": "7.png", "bbox": [3.0, 5.5, 53.0, 105.5], "label": 0, "name": "cat", "score": 0.5}]
    found = coco_rows(rows, {"x/000139.jpg": 139, "7.png": 7})
    assert found[0] == {"image_id": 139, "category_id": 2, "bbox": [10.0, 20.0, 30.0, 40.0], "score": 0.75}
    for name, what in (("gt", gt), ("found", found)):
        (tmp_path / f"{name}.json").write_text(json.dumps(what))
    truth = COCO(tmp_path / "gt.json")
    evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "found.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)
    assert coco_rows([], {}) == []


def test_shrinking_takes_the_boxes_along():
    img, bbox = shrink(np.zeros((100, 400, 3), np.uint8), np.array([[10, 20, 50, 400]], np.float32), 200)
    assert img.shape == (50, 200, 3)
    np.testing.assert_allclose(bbox, [[5, 10, 25, 200]])
    assert shrink(np.zeros((9, 5, 3), np.uint8), np.zeros((0, 4), np.float32), 200)[0].shape == (9, 5, 3)


# The whole


class OneBox:
    """Finds one object in each image, at the same relative place."""

    def to(self, device):
        return self

    def predict(self, imgs, **options):
        height, width = imgs[0].shape[:2]
        bbox = np.array([[0.25 * height, 0.5 * width, 0.5 * height, width]], np.float32)
        return [bbox], [np.array([1])], [np.array([0.8125678], np.float32)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with images in photos/ and a model that needs no checkpoint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predict, "open_checkpoint", lambda *args: {})
    monkeypatch.setattr(predict, "names_for", lambda *args: ("cat", "dog"))
    monkeypatch.setattr(predict, "restore", lambda checkpoint: OneBox())
    (tmp_path / "photos").mkdir()
    for name, size in (("7.png", (80, 40)), ("b.jpg", (300, 200))):
        Image.new("RGB", size, (90, 90, 90)).save(tmp_path / "photos" / name)
    return tmp_path


def config(**options):
    return PredictConfig(load_path="net.pth", device="cpu", precision="fp32", **options)


def test_what_is_written(folder, capsys):
    main(config(out="new/out", coco_json="coco/found.json"), "photos/*")
    out = folder / "new/out"
    assert sorted(path.name for path in out.iterdir()) == ["7.png", "b.png", "contact_sheet.png", "predictions.json"]
    assert json.loads((out / "predictions.json").read_text())[0] == {
        "image": "photos/7.png", "bbox": [10, 40, 20, 80], "label": 1, "name": "dog", "score": 0.812568}
    assert json.loads((folder / "coco/found.json").read_text())[0] == {
        "image_id": "7", "category_id": 2, "bbox": [40, 10, 40, 10], "score": 0.812568}
    with Image.open(out / "b.png") as picture, Image.open(out / "contact_sheet.png") as sheet:
        assert picture.size == (300, 200)
        assert sheet.width > 300 + 120
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("2 objects in 2 images")
    assert "boxes are [y_min, x_min, y_max, x_max]" in last
    assert last.endswith("look at new/out/contact_sheet.png first")


def test_images_that_cannot_be_read_are_named_at_the_end(folder, capsys):
    (folder / "photos/a.jpg").write_bytes(b"no image")
    whole = (folder / "photos/7.png").read_bytes()
    (folder / "photos/c.png").write_bytes(whole[:60])
    with pytest.raises(DataError) as caught:
        main(config(), "photos")
    assert str(caught.value) == "2 of 4 images cannot be read and are left out: photos/a.jpg, photos/c.png"
    written = sorted(path.name for path in (folder / "predictions").iterdir())
    assert written == ["7.png", "b.png", "contact_sheet.png", "predictions.json"]
    assert "2 objects in 2 images" in capsys.readouterr().out
    shutil.rmtree(folder / "predictions")
    with pytest.raises(DataError, match="1 of 1 images"):
        main(config(), "photos/a.jpg")
    assert "look at" not in capsys.readouterr().out  # there is nothing to look at
    assert [path.name for path in (folder / "predictions").iterdir()] == ["predictions.json"]


def test_the_sheet_has_the_first_16(folder):
    for i in range(20):
        shutil.copy(folder / "photos/7.png", folder / f"photos/x{i:02d}.png")
    sheets = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "contact_sheet", lambda imgs, titles: sheets.append(titles) or imgs[0])
        main(config(), "photos")
    assert sheets == [["7", "b", *(f"x{i:02d}" for i in range(14))]]


def test_no_image_is_written_over(folder):
    before = (folder / "photos/7.png").read_bytes()
    with pytest.raises(OptionError, match=r"place of the image photos/7\.png: choose another folder with --out"):
        main(config(out="photos/../photos"), "photos/7.png")
    assert (folder / "photos/7.png").read_bytes() == before
    with pytest.raises(OptionError, match=r"photos/7\.png/predictions\.json cannot be written"):
        main(config(out="photos/7.png"), "photos/b.jpg")


def test_nothing_found_has_a_hint(folder, monkeypatch, capsys):
    nothing = [np.zeros((0, 4), np.float32)], [np.zeros(0, int)], [np.zeros(0, np.float32)]
    monkeypatch.setattr(OneBox, "predict", lambda self, imgs, **options: nothing)
    main(config(), "photos")
    assert capsys.readouterr().out.endswith("look at predictions/contact_sheet.png first, or try --score-thresh=0.35\n")
    assert json.loads((folder / "predictions/predictions.json").read_text()) == []
