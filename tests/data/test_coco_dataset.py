"""The COCO reader: the same samples as from the VOC files, what the tools write, and a sentence for each fault."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from coco_files import write_coco
from PIL import Image
from voc_files import RGB, message, thing, write_voc

from data import build
from data.validate import KINDS, ValidationReport
from data.voc_dataset import read_splits

CROWD = {"id": 3, "image_id": 7, "category_id": 9, "bbox": [10, 5, 20.5, 30], "iscrowd": 1, "area": 77}
CONTENT = {
    "images": [{"id": 7, "file_name": "a.jpg", "width": 60, "height": 40}, {"id": 5, "file_name": "b.jpg"}],
    "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}],
    "annotations": [CROWD, {"image_id": 7, "category_id": 4, "bbox": [0, 1, 2, 4]}],
}
DRAW = {"val_ratio": 0.5, "seed": 0}


@pytest.fixture
def write(tmp_path):
    """A function that writes a file of `content` beside images and returns the options that name both."""

    def write(content, name="all", images=("a.jpg", "b.jpg"), **options):
        for image in images:
            path = tmp_path / "img" / image
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (60, 40), RGB).save(path)
        path = tmp_path / f"{name}.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        paths = {"coco_images": str(tmp_path / "img"), "coco_annotations": str(path)}
        return SimpleNamespace(**{"coco_eval_images": None, "coco_eval_annotations": None} | paths | options)

    return write


def change(key, i, **values):
    """`CONTENT` with an entry of a list changed; without the keys that get the value `...`."""
    entry = {k: v for k, v in (CONTENT[key][i] | values).items() if v is not ...}
    return CONTENT | {key: [*CONTENT[key][:i], entry, *CONTENT[key][i + 1 :]]}


# What is read


def test_the_same_samples_as_from_voc(tmp_path):
    hard = thing("dog", (2, 3, 5, 9), "<difficult>1</difficult>")
    write_voc(tmp_path, {"b": [thing(), hard], "a": [thing("dog", (1.5, 1, 39.25, 60))], "empty": []}, "train")
    write_voc(tmp_path, {"c": [thing("eel")]}, "val")
    vocs = read_splits(tmp_path, ["train", "val"])
    cocos = build("coco", SimpleNamespace(**write_coco(tmp_path, *vocs)), ["train", "val"])
    for voc, coco in zip(vocs, cocos, strict=True):
        assert (coco.ids, coco.classes, coco.sizes) == (voc.ids, voc.classes, voc.sizes)
        assert (coco.split, coco.root) == (voc.split, tmp_path / "JPEGImages")
        for pair in ((voc, coco), (voc.without_difficult(), coco.without_difficult())):
            for ours, theirs in zip(*([dataset[i] for i in range(len(dataset))] for dataset in pair), strict=True):
                for name in ("img", "bbox", "label", "difficult"):
                    np.testing.assert_array_equal(getattr(theirs, name), getattr(ours, name))
                    assert getattr(theirs, name).dtype == getattr(ours, name).dtype
    assert cocos[0].image_ids == [40, 41, 42]
    assert cocos[0].category_ids == [3, 6, 9]  # of cat, dog and eel


def test_numbers_by_hand(write):
    (dataset,) = build("coco", write(CONTENT), ["train"])
    assert (dataset.ids, dataset.image_ids, dataset.sizes) == (["a", "b"], [7, 5], [(40, 60)] * 2)
    assert (dataset.classes, dataset.category_ids) == (("dog", "cat"), [9, 4])  # in the order of the file
    sample = dataset[0]
    np.testing.assert_array_equal(sample.bbox, [[5, 10, 35, 30.5], [1, 0, 5, 2]])  # nothing is subtracted
    assert (sample.label.tolist(), sample.difficult.tolist()) == ([0, 1], [True, False])
    np.testing.assert_array_equal(dataset.areas[0], [77, np.nan])
    easy = dataset.without_difficult()
    assert ([len(bbox) for bbox in easy.bboxes], [len(area) for area in easy.areas]) == ([1, 0], [1, 0])
    assert dataset.metric == "coco"
    assert (
        f"objects with iscrowd, ignore or difficult: 1 of 2 in {dataset.root.parent}/all.json ({KINDS['crowd'][1]})"
        in dataset.notes
    )


def test_a_file_with_nothing_but_crowds_has_none(write):
    (dataset,) = build("coco", write(change("annotations", 1, iscrowd=1)), ["train"])  # CVAT's masks of objects
    assert dataset.difficults[0].tolist() == [False, False]
    assert any(note.startswith("objects with iscrowd, ignore or difficult: 2 of 2 in ") for note in dataset.notes)


WAYS = {  # of the tools -> changed content, image files, ids
    "cvat": (change("images", 0, file_name="cam/day 1/a.jpg"), ("cam/day 1/a.jpg", "b.jpg"), ["cam/day 1/a", "b"]),
    "label studio": (change("images", 0, file_name="images\\a.jpg"), ("a.jpg", "b.jpg"), ["a", "b"]),
    "two of one stem": (change("images", 1, file_name="a.png"), ("a.jpg", "a.png"), ["a.jpg", "a.png"]),
    "polygon": (change("annotations", 1, segmentation=[[1, 2, 3, 4, 5, 6]], attributes={}), ("a.jpg", "b.jpg"), None),
    "mask": (change("annotations", 0, segmentation={"size": [40, 60], "counts": "x"}), ("a.jpg", "b.jpg"), None),
    "no area or crowd": (change("annotations", 0, iscrowd=..., area=None), ("a.jpg", "b.jpg"), None),
    "no size": (change("images", 0, width=None, height=0), ("a.jpg", "b.jpg"), None),
    "numbers that are texts": (change("annotations", 1, iscrowd="0", bbox=[*"0124"]), ("a.jpg", "b.jpg"), None),
    "words": (
        change("annotations", 1, iscrowd="false", area="", attributes={"rotation": "left"}),
        ("a.jpg", "b.jpg"),
        None,
    ),
    "other attributes": (change("annotations", 1, attributes=[1]), ("a.jpg", "b.jpg"), None),
    "a touch of the handle": (change("annotations", 1, attributes={"rotation": 359.8}), ("a.jpg", "b.jpg"), None),
    "a polygon the other way round": (change("annotations", 1, area=-8), ("a.jpg", "b.jpg"), None),
    "an unusual word": (change("annotations", 1, iscrowd="Unspecified", area="N/A"), ("a.jpg", "b.jpg"), None),
    "numbers with a point, from pandas": (
        change("images", 0, id=7.0) | {"categories": [{"id": 9.0, "name": 1}, {"id": 4.0, "name": 2}]},
        ("a.jpg", "b.jpg"),
        None,
    ),
    "ids that are texts": (change("images", 1, id="b"), ("a.jpg", "b.jpg"), None),
}


@pytest.mark.parametrize("name", WAYS)
def test_what_tools_write(write, name):
    content, images, ids = WAYS[name]
    (dataset,) = build("coco", write(content, images=images), ["train"])
    assert dataset.ids == (ids or ["a", "b"])
    assert dataset.bboxes[0].tolist() == [[5, 10, 35, 30.5], [1, 0, 5, 2]]
    assert (dataset.difficults[0][1], math.isnan(dataset.areas[0][1])) == (False, True)
    assert dataset[1].img.shape == (40, 60, 3)


@pytest.mark.parametrize(
    ("parents", "used", "classes"),
    [
        (["none", "pets", "pets"], (1, 2), ("dog", "cat")),  # Roboflow
        (["none", "pets", "pets"], (0, 1), ("pets", "dog", "cat")),
        (["none", "none", "none"], (1,), ("pets", "dog", "cat")),
        (["", "animal", None], (1,), ("pets", "dog", "cat")),  # a class that has no object yet
    ],
)
def test_a_category_that_groups_others_is_no_class(write, parents, used, classes):
    names = ("pets", "dog", "cat")
    categories = [{"id": i, "name": names[i], "supercategory": parents[i]} for i in range(3)]
    objects = [{"image_id": 7, "category_id": i, "bbox": [1, 2, 3, 4]} for i in used]
    (dataset,) = build("coco", write(CONTENT | {"categories": categories, "annotations": objects}), ["train"])
    assert dataset.classes == classes
    assert dataset.category_ids == [names.index(name) for name in classes]


def test_a_group_may_be_named_as_one_of_its_classes(write):
    names = {0: "dog", 1: "cat", 2: "dog"}  # Roboflow, where the project is named as a class
    categories = [{"id": i, "name": name, "supercategory": "dog" if i else "none"} for i, name in names.items()]
    objects = [{"image_id": 7, "category_id": i, "bbox": [1, 2, 3, 4]} for i in (1, 2)]
    (dataset,) = build("coco", write(CONTENT | {"categories": categories, "annotations": objects}), ["train"])
    assert (dataset.classes, dataset.category_ids) == (("dog", "cat"), [2, 1])
    assert dataset.labels[0].tolist() == [1, 0]


def test_an_unusual_area_is_noted(write):
    (dataset,) = build("coco", write(change("annotations", 1, area="big")), ["train"])
    assert any("annotations[1]: area 'big'" in note for note in dataset.notes)


@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
@pytest.mark.parametrize(
    ("value", "difficult"), [(True, True), (2, True), ("Yes", True), ("1.0", True), ("?", False), (-1, True)]
)
def test_words_for_a_crowd(write, key, value, difficult):
    content = change("annotations", 1, **{key: value}, attributes={"difficult": "false"})
    content["annotations"].append({"image_id": 7, "category_id": 4, "bbox": [0, 1, 2, 4]})
    (dataset,) = build("coco", write(content), ["train"])
    assert dataset.difficults[0].tolist() == [True, difficult, False]
    assert any(f"annotations[1]: {key} '?'" in note for note in dataset.notes) != difficult


def test_difficult_and_no_area_as_datumaro_writes_them(write):
    content = change("annotations", 1, attributes={"difficult": True}, area=0)
    content["annotations"].append({"image_id": 7, "category_id": 4, "bbox": [0, 1, 2, 4]})
    (dataset,) = build("coco", write(content), ["train"])
    assert dataset.difficults[0].tolist() == [True, True, False]
    np.testing.assert_array_equal(dataset.areas[0], [77, np.nan, np.nan])


@pytest.mark.parametrize(
    ("names", "twice"), [(("\u00e9.jpg", "e\u0301.jpg"), "\u00e9.jpg"), (("a.jpg", "a.png", "a.jpg.png"), "a.jpg")]
)
def test_images_of_one_id_are_named(write, names, twice):
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    text = message(build, "coco", write({"images": images, "categories": []}, images=names), ["train"])
    assert f"all.json: 2 times image {twice}" in text


def test_names_are_the_same_however_their_accents_are_stored(write):
    for name in ("\u00e9.jpg", "e\u0301.jpg"):
        images = [{"id": 1, "file_name": name}]
        options = write({"images": images, "categories": []}, images=["e\u0301.jpg"])
        assert build("coco", options, ["train"])[0].ids == ["\u00e9"]


def test_two_files_are_joined_by_the_names_of_the_classes(write):
    other = {"categories": [{"id": 9, "name": "cat"}, {"id": 2, "name": "e\u0301el"}]}
    paths = vars(write(change("annotations", 0, category_id=2) | other | {"annotations": None}, "eval"))
    evaluated = {"coco_eval_images": paths["coco_images"], "coco_eval_annotations": paths["coco_annotations"]}
    options = write(CONTENT, **evaluated)
    train, test, again = build("coco", options, ["Trainval", "val_untrained", "my_train"])
    assert train.classes == test.classes == again.classes == ("dog", "cat", "\u00e9el")
    assert (train.category_ids, test.category_ids) == ([9, 4, None], [None, 9, 2])
    assert [len(dataset.bboxes[0]) for dataset in (train, test, again)] == [2, 0, 2]
    assert [(dataset.split, dataset.drawn) for dataset in build("coco", options, [])] == [
        ("train", False),
        ("eval", False),
    ]
    (few,) = build("coco", SimpleNamespace(**vars(options), unknown_classes="ignore"), ["train"], ("cat",))
    assert (few.classes, few.category_ids, few.bboxes[0].tolist()) == (("cat",), [4], [[1, 0, 5, 2]])


def test_one_file_is_divided(write):
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(10)]
    options = write({"images": images, "categories": []}, images=[f"{i}.jpg" for i in range(10)], val_ratio=0.3, seed=1)
    train, test = build("coco", options, ["trainval", "test"])
    assert (len(train), len(test), train.drawn, test.drawn) == (7, 3, True, True)
    assert sorted(train.ids + test.ids) == [str(i) for i in range(10)]
    assert train.ids != [str(i) for i in range(7)]
    assert "splits drawn at random: trainval 7 of 10 images; test 3 of 10 images (" in train.notes[0]
    options.val_ratio = 0  # as evaluation asks for other data
    assert not "".join(build("coco", options, ["test"])[0].notes).startswith("splits drawn")
    fit = {"fit": [*"01234567"]}
    options.val_ratio, options.split_ids = 0, fit | {"test": ["8", "2"]}
    train, test = build("coco", options, ["trainval", "test"])  # as evaluation asks for the split of the training
    assert (len(train), test.ids) == (10, ["8", "2"])
    kept, new = test.notes
    assert kept.startswith("splits of the training: test 2 of 10 images (")
    assert new.startswith("images that the drawn splits lack: 1 of 10, such as 9 (")
    (Path(options.coco_images) / "9.jpg").unlink()  # is not used
    assert build("coco", options, ["test"])[0].ids == ["8", "2"]
    write({"images": images, "categories": []}, images=["9.jpg"])
    options.val_ratio, options.split_ids = 0.3, fit | {"test": ["8", *"abcdefghi"]}  # of other data
    train, test = build("coco", options, ["trainval", "test"])
    assert len(test) == 3
    assert any(note.startswith("splits of the training that are not used: ") for note in test.notes)
    options.split_ids = {"fit": ["1"], "test": ["8", "2"]}  # before most images came
    assert build("coco", options, ["trainval", "test"])[1].ids == ["8", "2"]
    size = (Path(options.coco_images) / "0.jpg").stat().st_size
    for n_bytes, n_test in (([size], 1), ([size + 1], 3)):  # of images with the same names
        other = vars(options) | {"split_ids": fit | {"test": ["8"]}, "n_bytes": n_bytes}
        assert len(build("coco", SimpleNamespace(**other), ["trainval", "test"])[1]) == n_test
    options.split_ids = fit | {"test": ["gone"]}  # of these data, less one image
    assert message(build, "coco", options, ["test"]).startswith("images of a split that was drawn (1): their entr")
    options.split_ids, options.invalid_images = fit | {"test": ["8", "gone"]}, "skip"
    assert build("coco", options, ["test"])[0].ids == ["8"]


def test_folders_say_that_one_file_is_of_several_splits(write):
    names = ("train2017/a.jpg", "val2017/b.jpg")
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    options = write({"images": images, "categories": []}, images=names, **DRAW)
    text = message(build, "coco", options, ["train", "val"])
    assert text.startswith("splits in one file (1): write a file each, for --coco-annotations and --coco-eval-ann")
    assert text.endswith("folders train, val")
    assert [len(dataset) for dataset in build("coco", options, ["all", "all"])] == [2, 2]  # nothing is drawn
    cases = (("test/train/", "test/train/"), True), (("", "test/"), True), (("test/train/", "test/"), False)
    for folders, drawn in cases:
        images = [{"id": i, "file_name": f"/me/{folder}{i}.jpg"} for i, folder in enumerate(folders)]
        options = write({"images": images, "categories": []}, "same", images=("0.jpg", "1.jpg"), **DRAW)
        if drawn:
            assert [len(dataset) for dataset in build("coco", options, ["train", "val"])] == [1, 1]
        else:
            assert message(build, "coco", options, ["train", "val"]).endswith("folders test, test/train")
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    options = write({"images": images, "categories": []}, images=names, **DRAW)
    assert len(build("coco", SimpleNamespace(**vars(options), split_ids={"val": ["val2017/b"]}), ["val"])[0]) == 1


def test_images_lie_deeper_or_are_named_in_another_case(write, tmp_path):
    options = write(CONTENT, images=["default/a.JPG", "x/b.jpg"])
    assert [path.name for path in build("coco", options, ["train"])[0].paths] == ["a.JPG", "b.jpg"]
    options = write(CONTENT, images=["y/b.jpg"])
    text = message(build, "coco", options, ["train"])
    assert text.endswith(f"{tmp_path}/img/b.jpg: {tmp_path}/img/x/b.jpg, {tmp_path}/img/y/b.jpg")
    content = {"images": [{"id": 1, "file_name": "2/B.jpg"}], "categories": []}
    options = write(content, images=["default/1/b.jpg", "default/2/b.jpg", "default/12/b.jpg"])  # its folder decides
    assert build("coco", options, ["train"])[0].paths == [tmp_path / "img/default/2/b.jpg"]
    options = write(content, images=["other/2/b.jpg"])
    assert "images of which there are several (1)" in message(build, "coco", options, ["train"])


def test_an_image_of_a_folder_is_not_that_of_another(write, tmp_path):
    names = ("cam1/3.jpg", "cam2/3.jpg", "cam2/4.jpg")
    content = {"images": [{"id": i, "file_name": name} for i, name in enumerate(names)], "categories": []}
    options = write(content, images=("cam1/3.jpg", "cam2/4.jpg", "3.jpg"))
    text = message(build, "coco", options, ["train"])
    assert text.startswith("missing images (1)")
    assert text.endswith(f"{tmp_path}/img/cam2/3.jpg, only {tmp_path}/img/3.jpg")
    (dataset,) = build("coco", SimpleNamespace(**vars(options), invalid_images="skip"), ["train"])
    assert dataset.ids == ["cam1/3", "cam2/4"]
    options = write(content | {"images": content["images"][:1]}, "one")
    options.coco_images += "/cam1"  # the folder itself
    assert build("coco", options, ["train"])[0].paths == [tmp_path / "img/cam1/3.jpg"]
    write(CONTENT, images=("cam1/cam1/3.jpg",))
    assert build("coco", options, ["train"])[0].paths == [tmp_path / "img/cam1/cam1/3.jpg"]
    options.coco_images = f"{tmp_path}/img/cam2"
    assert build("coco", options, ["train"])[0].paths == [tmp_path / "img/cam1/3.jpg"]
    (tmp_path / "link").symlink_to(tmp_path / "img/cam1")
    (tmp_path / "cam2").symlink_to(tmp_path / "img/cam1")
    options.coco_images = f"{tmp_path}/cam2"  # of one file by two ways
    write(content | {"images": [{"id": 0, "file_name": "link/3.jpg"}]}, "one", images=())
    assert [path.name for path in build("coco", options, ["train"])[0].paths] == ["3.jpg"]


def test_of_two_folders_none_is_chosen(write, tmp_path):
    names = "img/a.jpg", "img/b.jpg", "gray/a.jpg"
    images = [{"id": i, "file_name": name} for i, name in enumerate(names[:2])]
    options = write({"images": images, "categories": []}, images=[f"../{name}" for name in names])
    options.coco_images = f"{tmp_path}/gray"
    text = message(build, "coco", options, ["train"])
    assert text.startswith("images of which there are several (1): name their folder with --coco-images")
    assert text.endswith(f"\n  {tmp_path}/gray/img/a.jpg: {tmp_path}/img/a.jpg, {tmp_path}/gray/a.jpg")


@pytest.mark.parametrize("before", ["{}/old/", "../old/", "//server/old/", "C:\\old\\"])
def test_the_folder_of_the_options_counts_not_that_of_the_file(write, tmp_path, before):
    images = [{"id": 1, "file_name": before.format(tmp_path) + "a.jpg"}]
    options = write({"images": images, "categories": []}, images=["a.jpg", "../old/a.jpg"])
    if before == "../old/":  # beside the folder of images
        assert f"{tmp_path}/old/a.jpg, {tmp_path}/img/a.jpg" in message(build, "coco", options, ["train"])
    else:
        (dataset,) = build("coco", options, ["train"])
        assert dataset.paths == [tmp_path / "img/a.jpg"]


@pytest.mark.parametrize(
    "name",
    [
        "/data/local-files/?d=photos%5CB%C3%BCro.jpg",
        "https://host/bucket/B%C3%BCro.jpg?X-Signature=" + "0" * 300,
        "B%C3%BCro.jpg",
        "x/B%c3%bcro.jpg",
    ],
)
def test_file_name_may_be_an_address(write, tmp_path, name):
    options = write({"images": [{"id": 1, "file_name": name}], "categories": []}, images=["Büro.jpg"])
    assert build("coco", options, ["train"])[0].paths == [tmp_path / "img/Büro.jpg"]
    options = write({"images": [{"id": 1, "file_name": "B%20.jpg"}], "categories": []}, images=["B .jpg", "B%20.jpg"])
    assert build("coco", options, ["train"])[0].paths == [tmp_path / "img/B%20.jpg"]


@pytest.mark.parametrize(
    ("size", "noted"), [("60.0", False), (math.nan, True), ("sixty", True), ([60], True), (math.inf, True)]
)
def test_sizes_that_are_no_numbers_are_noted(write, size, noted):
    (dataset,) = build("coco", write(change("images", 0, width=size)), ["train"])
    assert any(f"a.jpg: width {size!r}, height 40 (" in note for note in dataset.notes) == noted


def test_folders_above_the_last_tell_images_apart(write, tmp_path):
    names = ("s1/img1/1.jpg", "s2/img1/1.jpg", "s2/img1/2.jpg", "old/s1/img1/3.JPG")
    content = {"images": [{"id": i, "file_name": name} for i, name in enumerate(names)], "categories": []}
    options = write(content, images=(names[0], names[2], "more/s1/img1/3.jpg"), invalid_images="skip")
    assert build("coco", options, ["train"])[0].ids == ["s1/img1/1", "s2/img1/2", "more/s1/img1/3"]


def test_one_file_under_two_names_in_two_files(write, tmp_path):
    other = write({"images": [{"id": 1, "file_name": "cam2/b.jpg"}], "categories": []}, "val", images=())
    more = {"coco_eval_images": other.coco_images, "coco_eval_annotations": other.coco_annotations}
    train, held_out = build("coco", write(CONTENT, **more), ["train", "val"])
    assert (train.ids, held_out.ids) == (["a", "b"], ["b"])  # a training notes it
    more["coco_eval_annotations"] = f"{tmp_path}/all.json"
    train, _ = build("coco", write(CONTENT, **more), ["train", "val"])
    assert not any(note.startswith("copies") for note in train.notes)


def test_a_name_without_folders_is_not_looked_up_beside(write, tmp_path):
    options = write({"images": [{"id": 1, "file_name": "a.jpg"}], "categories": []}, images=["../a.jpg"])
    assert "missing images (1)" in message(build, "coco", options, ["train"])


def test_the_folder_of_the_images_is_none_below_it(write, tmp_path):
    images = [{"id": 1, "file_name": "img/a.jpg"}, {"id": 2, "file_name": "img/b.jpg"}]
    options = write({"images": images, "categories": []}, images=["a.jpg", "x/b.jpg"])
    assert build("coco", options, ["train"])[0].paths == [tmp_path / "img/a.jpg", tmp_path / "img/x/b.jpg"]


def test_what_is_there_instead_is_named(write, tmp_path):
    options = write(CONTENT, images=["a.jpg", "x/B.png"])
    (tmp_path / "img/b.json").write_text("{}")
    assert message(build, "coco", options, ["train"]).endswith(f"{tmp_path}/img/b.jpg, only {tmp_path}/img/x/B.png")


def test_copies_in_two_files_are_noted(write, tmp_path):
    images = [{"id": 1, "file_name": "b.jpg"}]
    held_out = write({"images": images, "categories": []}, "val", images=("val/b.jpg",))
    more = {"coco_eval_images": f"{tmp_path}/img/val", "coco_eval_annotations": held_out.coco_annotations}
    train, _ = build("coco", write(CONTENT, **more), ["train", "val"])
    assert f"copies of images: {tmp_path}/img/val/b.jpg of {tmp_path}/img/b.jpg (" in "".join(train.notes)


def test_images_lie_below_a_link(write, tmp_path):
    options = write(CONTENT, images=["ssd/a.jpg", "ssd/b.jpg"])
    (tmp_path / "img/ssd").rename(tmp_path / "ssd")
    (tmp_path / "img/train2017").symlink_to(tmp_path / "ssd")
    assert len(build("coco", options, ["train"])[0]) == 2


@pytest.mark.parametrize(("name", "stored"), [("é", "e\u0301"), ("e\u0301", "é")])
def test_accents_may_be_stored_in_either_way(write, name, stored):
    content = change("images", 0, file_name=f"{name}.jpg")
    assert len(build("coco", write(content, images=[f"{stored}.jpg", "b.jpg"]), ["train"])[0].paths) == 2


def test_ids_may_be_texts(write):
    objects = [CROWD | {"image_id": "7", "category_id": "9"}, CONTENT["annotations"][1]]
    (dataset,) = build("coco", write(CONTENT | {"annotations": objects}), ["train"])
    assert (dataset.labels[0].tolist(), dataset.category_ids, dataset.image_ids) == ([0, 1], [9, 4], [7, 5])


# Faults

FAULTS = {  # name -> content, part of the message, None or number of objects with --invalid-boxes=skip
    "no image id": (change("images", 1, id=...), "images[1]: it needs an id and a file_name", None),
    "no file_name": (change("images", 1, file_name=" "), "images[1]: it needs an id and a file_name", None),
    "an entry that is a list": (CONTENT | {"images": [[]]}, "images[0]: it needs an id and a file_name", None),
    "a file_name twice": (change("images", 1, file_name="a.jpg"), "2 times image a.jpg", None),
    "an id twice": (change("images", 1, id=7), "images[1]: an earlier one has the id 7", None),
    "a file twice": (change("images", 1, file_name="x/a.jpg"), "2 times image a.jpg", None),
    "a name that is false": (change("categories", 0, name=False), "categories[0]: it needs an id and a name", None),
    "no name": (change("categories", 0, name=None), "categories[0]: it needs an id and a name", None),
    "a name twice": (change("categories", 0, name="cat "), "2 times category cat", None),
    "unknown image": (change("annotations", 0, image_id=8), "annotations[0]: no image has the id 8", 1),
    "unknown category": (change("annotations", 0, category_id=1), "annotations[0]: no category has the id 1", 1),
    "no category": (change("annotations", 0, category_id=...), "annotations[0]: category_id is missing", 1),
    "no box": (change("annotations", 1, bbox=...), "annotations[1]: bbox is missing", 1),
    "an empty box": (change("annotations", 1, bbox=[]), "annotations[1]: bbox [] is not four numbers", 1),
    "a box of words": (change("annotations", 1, bbox=["a"] * 4), "[1]: bbox ['a', 'a', 'a', 'a'] is not four", 1),
    "fractions": (change("annotations", 1, bbox=[0, 0.2, 0.5, 1]), "annotations[1]: bbox [0, 0.2, 0.5, 1] is in f", 1),
    "rotated": (change("annotations", 1, attributes={"rotation": 30.0}), "[1]: its box is rotated by 30.0 degrees", 1),
    "no object of JSON": (CONTENT | {"annotations": [3]}, "annotations[0]: a value is not as in COCO's format", 0),
    "null": (change("annotations", 1, bbox=None), "annotations[1]: bbox None is not four numbers", 1),
    "endless": (change("annotations", 1, bbox=[10**400] * 4), "annotations[1]: bbox [10000", 1),
    "zeros": (change("annotations", 1, bbox=[0] * 4), "a.jpg object 2 (cat): xmin 0, ymin 0, xmax 0", 1),
    "no area": (change("annotations", 1, bbox=[3, 4, 0, 9]), "a.jpg object 2 (cat): xmin 3, ymin 4, xmax 3", 1),
    "not a number": (change("annotations", 1, bbox=[3, 4, float("nan"), 9]), "a.jpg object 2 (cat): xmin 3, ymin 4", 1),
    "outside": (change("annotations", 1, bbox=[60, 4, 5, 9]), "boxes outside their image (1)", 1),
    "far outside": (change("annotations", 1, bbox=[0, 1, 2, 400]), "boxes that extend far beyond", 2),
    "size": (change("images", 0, width=61), "a.jpg: annotated as 61x40, ", None),
    "size in quotes": (change("images", 0, width="61.0"), "a.jpg: annotated as 61x40, ", None),
    "similar classes": (change("categories", 0, name="Cat"), "names that differ only in case", None),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(write, name):
    content, text, n_object = FAULTS[name]
    options = write(content)
    error = message(build, "coco", options, ["train"])
    assert text in error
    assert options.coco_images.removesuffix("img") in error  # a path
    options.invalid_boxes = "skip"
    if n_object is None:
        assert text in message(build, "coco", options, ["train"])
    else:
        assert sum(map(len, build("coco", options, ["train"])[0].bboxes)) == n_object


def test_all_faults_are_named_at_once(write):
    content = CONTENT | {"annotations": [{"image_id": i} for i in range(8)]}
    options, report = write(content, images=["a.jpg"]), ValidationReport()
    build("coco", options, ["train"], report=report)
    assert {kind: len(offenders) for kind, offenders in report.errors.items()} == {"object": 8, "coco_image": 1}
    assert "dog" in message(build, "coco", write(CONTENT), ["train"], ("cat", "cow"))


def test_a_box_just_beyond_the_border_is_clipped(write):
    (dataset,) = build("coco", write(change("annotations", 1, bbox=[-0.5, 1, 2, 4])), ["train"])
    assert dataset.bboxes[0][1].tolist() == [1, 0, 5, 1.5]
    assert "clipped boxes: " in dataset.notes[1]  # these files never count from 1


def test_missing_images_can_be_left_out(write, tmp_path):
    options = write(CONTENT, images=["a.jpg"])
    assert f"  {tmp_path}/img/b.jpg" in message(build, "coco", options, ["train"])
    (dataset,) = build("coco", SimpleNamespace(**vars(options), invalid_images="skip"), ["train"])
    assert (dataset.ids, dataset.image_ids) == (["a"], [7])
    assert dataset.notes[1].startswith(f"skipped images: {tmp_path}/img/b.jpg: no image")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "all.json is no valid JSON (Expecting value"),
        ('{"images": ["\xe9"]}'.encode("cp1252"), "all.json is not UTF-8 text: unpack it, or save it as UTF-8"),
        (b"[" * 99999, "all.json is no valid JSON"),
        ([], "the lists images, categories, annotations: it has something else"),
        ({"shapes": [], "version": 1}, "the lists images, categories, annotations: it has shapes, version"),
        (CONTENT | {"annotations": {}}, "it has images, categories, annotations"),
        (
            {"images": [], "categories": [], "licenses": [], "objects": []},
            "it has images, categories, licenses, objects",
        ),
    ],
)
def test_files_of_another_format(write, content, text):
    assert text in message(build, "coco", write(content), ["train"])


def test_what_is_not_there(write, tmp_path):
    options = write(CONTENT)
    options.coco_annotations = str(tmp_path)
    text = f"{tmp_path} cannot be read: Is a directory; files .json there: {tmp_path}/all.json"
    assert message(build, "coco", options, ["train"]) == text
    options.coco_annotations = str(tmp_path / "x" / "y.json")
    assert message(build, "coco", options, ["train"]).endswith("No such file or directory; files .json there: none")
    options.coco_images = "nowhere"
    assert message(build, "coco", options, ["train"]).startswith("--coco-images=nowhere is not a folder: ")
    options.coco_images = None
    assert message(build, "coco", options, ["train"]) == (
        "--data=coco needs --coco-images=DIR and --coco-annotations=FILE"
    )
    options.coco_eval_images = "a"
    assert "--coco-eval-images=DIR and --coco-eval-annotations=FILE" in message(build, "coco", options, ["test"])
