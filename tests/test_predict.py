"""predict.py: which images, what their pictures are called, COCO's format, images that cannot be read."""

import copy
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import fixtures
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import predict
from data.validate import DataError
from predict import find_images, main, picture_names
from utils.coco_eval import coco_results, number_ids
from utils.config import OptionError, PredictConfig


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


# Which images


def test_images_are_files_and_those_in_directories_by_name(tmp_path, capsys):
    touch(tmp_path, "b.JPG", "a.png", "c.jpeg", "note.txt", "deep/z.png", "one.bmp", "folder.png/y.png", "._a.png")
    found = find_images([str(tmp_path / "one.bmp"), str(tmp_path), tmp_path / "a.png"])
    assert [path.name for path in found] == ["one.bmp", "a.png", "b.JPG", "c.jpeg"]  # each once
    assert (
        capsys.readouterr().out == f"{tmp_path}: 1 file passed over, not .jpg .jpeg .jfif .png .bmp .tif "
        ".tiff .webp .gif .ppm\n"
    )


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("a*", ["a1.png", "a2.png"]),
        ("?2.*", ["a2.png", "b2.JPG"]),
        ("**/a*", ["a1.png", "a2.png", "deep/er/a4.jpg"]),
        ("deep/**", ["deep/b.png", "deep/er/a4.jpg"]),
        ("x[1].png", ["x[1].png"]),  # the name of a file comes first
        ("[bx]*", ["b2.JPG", "x[1].png"]),
        ("cam [1]/*", ["cam [1]/c.png"]),  # and so does that of a directory
        ("cam [1]/**", ["cam [1]/c.png", "cam [1]/new/d.png"]),
    ],
)
def test_patterns_match_images(tmp_path, pattern, found):
    touch(tmp_path, "b2.JPG", "a1.png", "a2.png", "a3.txt", "deep/er/a4.jpg", "deep/b.png", "x[1].png", "cam [1]/c.png")
    touch(tmp_path, "cam [1]/new/d.png", "cam 1/e.png")
    assert [str(path.relative_to(tmp_path)) for path in find_images([tmp_path / pattern])] == found


def test_missing_images_are_named(tmp_path):
    touch(tmp_path, "a.png", "note.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty contains no image \(\.jpg \.jpeg "):
        find_images([tmp_path / "a.png", tmp_path / "empty"])
    touch(tmp_path, "phone/a.HEIC", "phone/b.mov", "phone/LICENSE", "trip/x.heic", "trip/day 1/a.jpg")
    for name, end in (
        ("phone", r"\), only \.heic \.mov$"),
        ("trip", r"\), only \.heic: '.*trip/\*\*' takes those in its f"),
    ):
        with pytest.raises(DataError, match=rf"{name} contains no image \(.*{end}"):
            find_images([tmp_path / name])
    for name in ("no.png", "n*"):
        with pytest.raises(DataError) as caught:
            find_images([tmp_path / name])
        assert f"{name} does not exist, and as a pattern it matches no image (" in str(caught.value)


# Names


def test_a_picture_has_the_name_of_its_image(tmp_path):
    names = ["b.png", "cam1/a.jpg", "cam1/c.jpg", "cam2/A.jpg", "d.jpg", "d.png", "cam1/contact_sheet.png"]
    pictures = ["b", "cam1_a.jpg", "c", "cam2_A.jpg", "d.jpg", "d.png", "cam1_contact_sheet.png"]
    assert picture_names([tmp_path / name for name in names]) == pictures
    assert picture_names([tmp_path / "cam1/a.jpg"]) == ["a"]
    assert picture_names([Path("../x/a.jpg"), Path("a.jpg")]) == ["x_a.jpg", f"{Path.cwd().name}_a.jpg"]


def test_no_two_pictures_have_one_name(tmp_path):
    images = [tmp_path / name for name in ("cam1/a.jpg", "cam2/a.jpg", "cam1_a.jpg", "cam1_a.jpg.jpg")]
    assert picture_names(images[:3]) == ["cam1_a.jpg", "cam2_a.jpg", "cam1_a"]
    with pytest.raises(OptionError, match=r"several images would have the picture cam1_a\.jpg\.png: rename"):
        picture_names(images)


@pytest.mark.parametrize(
    ("names", "ids"),
    [(["000139", "7"], [139, 7]), (["000139", "12_3"], ["000139", "12_3"]), (["007", "7"], ["007", "7"])],
)
def test_image_ids_are_numbers_if_all_names_are(names, ids):
    assert number_ids(names) == ids


# COCO


def test_pycocotools_reads_the_results(tmp_path):
    dog = {"id": 1, "image_id": 139, "category_id": 2, "bbox": [10, 20, 30, 40], "area": 1200, "iscrowd": 0}
    cat = {"id": 2, "image_id": 7, "category_id": 1, "bbox": [5.5, 3, 100, 50], "area": 5000, "iscrowd": 0}
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    gt = {"images": [{"id": 139}, {"id": 7}], "categories": categories, "annotations": [dog, cat]}
    results = coco_results(139, [[20, 10, 60, 40]], [1], np.float32([0.75]))
    results += coco_results(7, [[3, 5.5, 53, 105.5]], [0], np.float32([0.5]))
    assert results[0] == {"image_id": 139, "category_id": 2, "bbox": [10.0, 20.0, 30.0, 40.0], "score": 0.75}
    for name, content in (("gt", gt), ("results", results)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    coco_gt = COCO(tmp_path / "gt.json")
    evaluation = COCOeval(coco_gt, coco_gt.loadRes(str(tmp_path / "results.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)
    assert coco_results(7, np.zeros((0, 4)), [], []) == []


# The whole command


class Split(list):
    """A data set in memory; its attributes are set by the test."""


class OneBox(torch.nn.Module):
    """Detects one object in each image, at the same relative place; remembers the options."""

    def predict(self, imgs, **options):
        self.options = options
        height, width = imgs[0].shape[:2]
        bbox = np.array([[0.25 * height, 0.5 * width, 0.5 * height, width]], np.float32)
        return [bbox], [np.array([1])], [np.array([0.8125678], np.float32)]


@pytest.fixture
def net():
    return OneBox()


@pytest.fixture
def folder(tmp_path, monkeypatch, net):
    """The working directory, with images in photos/ and a model that needs no checkpoint."""
    monkeypatch.chdir(tmp_path)
    checkpoint = {"build": {"n_fg_class": 2}, "class_names": ["cat", "dog"]}
    monkeypatch.setattr(predict.ckpt, "open_checkpoint", lambda *args: checkpoint)
    monkeypatch.setattr(predict.model, "restore", lambda checkpoint: net)
    (tmp_path / "photos").mkdir()
    for name, size in (("7.png", (80, 40)), ("b.jpg", (300, 200))):
        Image.new("RGB", size, (90, 90, 90)).save(tmp_path / "photos" / name)
    return tmp_path


def config(**options):
    options = {"out": "predictions"} | options
    return PredictConfig(load_path="net.pth", device="cpu", precision="fp32", **options)


def test_what_is_written(folder, capsys):
    main(config(out="new/out", coco_json="coco/results.json"), "photos/*")
    out = folder / "new/out"
    assert sorted(path.name for path in out.iterdir()) == ["7.png", "b.png", "contact_sheet.png", "predictions.json"]
    row = {"image": "photos/7.png", "bbox": [10, 40, 20, 80], "label": 1, "name": "dog", "score": 0.812568}
    assert json.loads((out / "predictions.json").read_text())[0] == row
    result = {"image_id": "7", "category_id": 2, "bbox": [40, 10, 40, 10], "score": 0.812568}
    assert json.loads((folder / "coco/results.json").read_text())[0] == result
    with Image.open(out / "b.png") as picture, Image.open(folder / "photos/b.jpg") as img:
        assert picture.size == (300, 200)
        difference = np.abs(np.asarray(picture).astype(int) - np.asarray(img)).max(2)
    assert difference[50:100, 140:].any()
    assert not difference[:, :100].any()
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("2 objects in 2 images, written to new/out: ")
    assert line.endswith("predictions.json (boxes are [y_min, x_min, y_max, x_max])")
    main(config(out="new/out"), "photos/7.png")
    assert "note: new/out holds 1 other picture, as of earlier calls\n" in capsys.readouterr().out


def test_a_photo_is_turned_upright(folder):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (300, 200)).save(folder / "photos/b.jpg", exif=exif)
    main(config(), "photos/b.jpg")
    with Image.open(folder / "predictions/b.png") as picture:
        assert picture.size == (200, 300)
    assert json.loads((folder / "predictions/predictions.json").read_text())[0]["bbox"] == [75, 100, 150, 200]


def test_options_reach_the_model(folder, net):
    main(config(nms_thresh=0.4), "photos/7.png")
    assert net.options == {"score_thresh": 0.7, "nms_thresh": 0.4, "max_detections": None}  # None: the model's own


def test_one_context_for_all_images_casts_the_weights_once(folder, monkeypatch):
    entered, enter = [], torch.autocast.__enter__
    monkeypatch.setattr(torch.autocast, "__enter__", lambda self: entered.append(self.fast_dtype) or enter(self))
    main(config().model_copy(update={"precision": "bf16"}), "photos")
    assert entered == [torch.bfloat16]


def test_pictures_of_one_stem_do_not_replace_each_other(folder):
    Image.new("RGB", (30, 50)).save(folder / "photos/b.png")
    main(config(), "photos")
    sizes = {path.name: Image.open(path).size for path in (folder / "predictions").glob("*b.*")}
    assert sizes == {"b.jpg.png": (300, 200), "b.png.png": (30, 50)}


def test_unreadable_images_are_named_at_the_end(folder, capsys):
    (folder / "photos/a.jpg").write_bytes(b"no image")
    whole = (folder / "photos/7.png").read_bytes()
    (folder / "photos/c.png").write_bytes(whole[:60])
    with pytest.raises(DataError) as caught:
        main(config(), "photos")
    title, *lines = str(caught.value).splitlines()
    assert title == "2 of 4 images cannot be read:"
    assert [line.split(" is ")[0] for line in lines] == ["photos/a.jpg", "photos/c.png"]
    written = sorted(path.name for path in (folder / "predictions").iterdir())
    assert written == ["7.png", "b.png", "contact_sheet.png", "predictions.json"]
    assert "2 objects in 2 images" in capsys.readouterr().out
    shutil.rmtree(folder / "predictions")
    with pytest.raises(DataError, match="1 of 1 image cannot"):
        main(config(), "photos/a.jpg")
    assert capsys.readouterr().out == ""  # no picture, and no hint about scores
    assert [path.name for path in (folder / "predictions").iterdir()] == ["predictions.json"]


def test_the_sheet_has_the_first_16_in_small(folder, monkeypatch):
    for i in range(20):
        shutil.copy(folder / "photos/7.png", folder / f"photos/x{i:02d}.png")
    Image.new("RGB", (3000, 2000)).save(folder / "photos/x05.png")
    sheets = []
    monkeypatch.setattr(predict, "contact_sheet", lambda imgs, titles: sheets.append((imgs, titles)) or imgs[0])
    main(config(), "photos")
    ((imgs, titles),) = sheets
    assert titles == ["7", "b", *(f"x{i:02d}" for i in range(14))]
    assert {img.shape for img in imgs} == {(40, 80, 3), (200, 300, 3), (300, 450, 3)}  # four of 400 x 300 in a row
    with Image.open(folder / "predictions/x05.png") as picture:
        assert picture.size == (3000, 2000)


def test_limit_takes_the_first(folder):
    main(config(limit=1), "photos")
    assert [row["image"] for row in json.loads(Path("predictions/predictions.json").read_text())] == ["photos/7.png"]


def test_outputs_are_below_runs_and_not_read_again(folder):
    assert PredictConfig(load_path="a").out == "runs/predictions"
    for _ in range(2):
        main(config(out="photos/found"), "photos")
    assert len(json.loads(Path("photos/found/predictions.json").read_text())) == 2
    with pytest.raises(OptionError, match="--out=photos/found is where the images are"):
        main(config(out="photos/found"), "photos/**")


def test_what_was_found_is_written_when_it_is_interrupted(folder, monkeypatch):
    calls = []
    monkeypatch.setattr(predict, "save_picture", lambda *args: calls.append(args) or (len(calls) > 1 and interrupt()))

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        main(config(coco_json="coco.json"), "photos")
    assert len(json.loads(Path("predictions/predictions.json").read_text())) == 2
    assert len(json.loads(Path("coco.json").read_text())) == 2


def test_a_file_name_that_is_not_utf_8(folder):
    name = os.fsdecode(b"photos/f\xe9.png")
    shutil.copy(folder / "photos/7.png", name)
    main(config(), "photos")
    rows = json.loads(Path("predictions/predictions.json").read_text(encoding="utf-8"))
    assert [row["image"] for row in rows] == ["photos/7.png", "photos/b.jpg", name]
    assert os.path.exists(os.fsdecode(b"predictions/f\xe9.png"))


@pytest.mark.parametrize(("paths", "options"), [((), {}), (("photos",), {"split": "val"})])
def test_images_or_a_split(folder, paths, options):
    with pytest.raises(OptionError, match="name images, directories or patterns, or else a split of the data set"):
        main(config(**options), *paths)


def test_a_split_of_the_data_set(folder, monkeypatch):
    fixtures.write_voc(folder / "voc", {"train": 1, "val": 2})
    checkpoint = {"build": {"n_fg_class": 2}, "class_names": ["cat", "dog"], "config": {"voc_data_dir": "voc"}}
    monkeypatch.setattr(predict.ckpt, "open_checkpoint", lambda *args: checkpoint)
    main(config(split="val"))  # classes of the data do not matter
    rows = json.loads(Path("predictions/predictions.json").read_text())
    assert [row["image"] for row in rows] == ["val00000", "val00001"]
    names = ["contact_sheet.png", "predictions.json", "val00000.png", "val00001.png"]
    assert sorted(path.name for path in Path("predictions").iterdir()) == names
    shutil.move("voc", "other")
    main(config(split="train", voc_data_dir="other", out="more"))
    assert Path("more/train00000.png").exists()
    for out in ("other", "other/JPEGImages"):
        with pytest.raises(OptionError, match="is where the images are"):
            main(config(split="train", voc_data_dir="other", out=out))
    for image in Path("other/JPEGImages").glob("val*"):
        image.rename(f"other/{image.name}.away")
    with pytest.raises(
        DataError, match=r"other, split val\nwithout annotations, name the images or their folder instead of --split"
    ):
        main(config(split="val", voc_data_dir="other", out="none", invalid_images="skip"))
    for image in Path("other").glob("val*.away"):
        image.rename(f"other/JPEGImages/{image.stem}")
    shutil.rmtree("other/ImageSets")
    main(config(split="val", voc_data_dir="other", out="all"))  # nothing says what the splits are
    assert len(json.loads(Path("all/predictions.json").read_text())) == 3


@pytest.mark.parametrize("root", ["voc", ""])  # "": a data set in memory
def test_pictures_of_a_split_do_not_replace_each_other(folder, monkeypatch, capsys, root):
    ids = ["a/b", "a_b", "c/b", "contact_sheet", "v1.5"]
    sample = SimpleNamespace(img=np.zeros((40, 60, 3), np.uint8))
    dataset = Split([sample] * len(ids))
    dataset.ids, dataset.root, dataset.split, dataset.notes = ids, root, "val", ["splits drawn at random"]
    monkeypatch.setattr(predict.data, "build", lambda *args: [dataset])
    checkpoint = {"build": {"n_fg_class": 2}, "class_names": ["cat", "dog"], "config": {}}
    monkeypatch.setattr(predict.ckpt, "open_checkpoint", lambda *args: checkpoint)
    main(config(split="val", coco_json="coco.json"))
    pictures = {path.stem for path in Path("predictions").glob("*.png")}
    assert len(pictures) == len(ids) + 1, pictures
    assert {"contact_sheet", "contact_sheet.jpg", "v1.5", "c_b.jpg"} <= pictures
    assert len({row["image_id"] for row in json.loads(Path("coco.json").read_text())}) == len(ids)
    assert f"{root}, split val: 5 images\nsplits drawn at random\n" in capsys.readouterr().out


def test_neither_image_nor_annotation_is_replaced(folder):
    before = (folder / "photos/7.png").read_bytes()
    with pytest.raises(OptionError, match=r"^--out=photos/\.\./photos is where the images are: choose another direct"):
        main(config(out="photos/../photos"), "photos/7.png")
    assert (folder / "photos/7.png").read_bytes() == before
    (folder / "all.json").write_text(' {"images": []}')
    with pytest.raises(OptionError, match=r"^--coco-json=all\.json exists and holds no results"):
        main(config(coco_json="all.json"), "photos/7.png")
    assert (folder / "all.json").read_text() == ' {"images": []}'


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"out": "photos/7.png"}, "photos/7.png"),
        ({"coco_json": "photos/7.png/a.json"}, "photos/7.png"),
        ({"coco_json": "photos"}, "photos"),
    ],
)
def test_outputs_that_cannot_be_written_are_named_before_the_work(folder, net, options, name):
    with pytest.raises(OSError, match=rf": '{name}'$"):  # `command` reports it in one line
        main(config(**options), "photos/b.jpg")
    assert not hasattr(net, "options")


def test_a_hint_if_nothing_is_detected(folder, monkeypatch, capsys):
    nothing = [np.zeros((0, 4), np.float32)], [np.zeros(0, int)], [np.zeros(0, np.float32)]
    monkeypatch.setattr(OneBox, "predict", lambda self, imgs, **options: nothing)
    main(config(), "photos")
    assert capsys.readouterr().out.endswith("\nnothing has a score above 0.7: try a lower --score-thresh\n")
    assert json.loads((folder / "predictions/predictions.json").read_text()) == []


def test_classes_for_a_checkpoint_without_names(folder, monkeypatch):
    monkeypatch.setattr(predict.ckpt, "open_checkpoint", lambda *args: {"build": {"n_fg_class": 2}, "class_names": []})
    main(config(classes="fox,owl"), "photos/7.png")
    assert json.loads((folder / "predictions/predictions.json").read_text())[0]["name"] == "owl"
    with pytest.raises(OptionError, match="--classes"):
        main(config(), "photos/7.png")


def test_truncated_svd(folder, tiny_model, monkeypatch):
    net = copy.deepcopy(tiny_model)
    monkeypatch.setattr(predict.model, "restore", lambda checkpoint: net)
    main(config(svd=(16, 4)), "photos")
    assert [len(layer) for layer in (net.head.fc6, net.head.fc7)] == [2, 2]
