"""eval.py from a checkpoint to its table and files: metrics, proposals, and where its options come from."""

import errno
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fixtures import NARROW
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from voc_files import read, thing, write_voc

import model.vgg16
from data.proposals import read_proposals, write_proposals
from data.validate import DataError
from eval import main
from model.utils.bbox_tools import resize_bbox
from utils.ablation import PAPER
from utils.checkpoint import CheckpointError, count_seen, save_checkpoint
from utils.coco_eval import eval_detection_coco
from utils.config import EvalConfig, OptionError
from utils.voc_eval import eval_detection_voc

BUILD = {"name": "vgg16", "n_fg_class": 3, "head_width": 16, "min_size": 64, "max_size": 96, "anchor_scales": (1, 2, 4)}
NAMES = ("ant", "bee", "cow")  # the data has no ant
# "gone" stands for an option of an older version; the model's own values are not stored in every old checkpoint
CONFIG = {"data": "voc", "voc_data_dir": "voc", "eval_split": "held", "invalid_boxes": "error", "gone": 1}
DIFFICULT = "<difficult>1</difficult>"
HELD = {
    "a": thing("bee") + thing("cow", (2, 30, 25, 60)),
    "b": thing("bee", (11, 7, 31, 28), DIFFICULT) + thing("cow", (5, 5, 35, 55)),
    "c": "",
}


@pytest.fixture(scope="module")
def net():
    """A network with few channels and random weights; all networks of this module have as few."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.vgg16, "LAYERS", NARROW)
        yield model.build(**BUILD, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, net):
    """A directory with a data set in voc/ and checkpoints of `net`."""
    folder = tmp_path_factory.mktemp("eval")
    write_voc(folder / "voc", HELD, "held", suffix=".png")
    write_voc(folder / "voc", {"d": thing("cow")}, "other", suffix=".png")
    for i, path in enumerate(sorted(folder.glob("voc/JPEGImages/*"))):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 60, 3), np.uint8)).save(path)
    checkpoint = {"model": net.state_dict(), "build": BUILD, "class_names": list(NAMES), "config": CONFIG}
    checkpoint |= {"preprocessing": tuple(net.preprocessing), "epoch": 1, "step": 7}
    save_checkpoint(folder / "net.pth", checkpoint)
    save_checkpoint(folder / "nameless.pth", checkpoint | {"class_names": []})
    save_checkpoint(folder / "odd.pth", checkpoint | {"build": BUILD | {"n_head": 2}})
    return folder


@pytest.fixture(scope="module")
def detector(folder):
    """The checkpoint detector.pth, with other weights and another input size."""
    build = BUILD | {"min_size": 96, "max_size": 150}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.vgg16, "LAYERS", NARROW)
        weights = model.build(**build, generator=torch.Generator().manual_seed(5)).state_dict()
    checkpoint = torch.load(folder / "net.pth", weights_only=True) | {"model": weights, "build": build}
    save_checkpoint(folder / "detector.pth", checkpoint)


@pytest.fixture
def run(folder, monkeypatch):
    """A function that evaluates net.pth with some options and returns what --json holds."""
    monkeypatch.chdir(folder)

    def run(**options):
        main(EvalConfig(**{"load_path": "net.pth", "device": "cpu", "json": "new/figures.json"} | options))
        return json.loads((folder / "new/figures.json").read_text())

    return run


def detections(net, dataset, **options):
    """What `eval_detection_voc` and `eval_detection_coco` take."""
    pred = net.predict([sample.img for sample in dataset], **options)
    return *pred, dataset.bboxes, dataset.labels, dataset.difficults


@pytest.mark.parametrize("metric", ["voc07", "voc", "coco"])
def test_each_metric(run, folder, net, capsys, metric):
    figures = run(metric=metric, score_thresh=0.02)
    lists = detections(net, read(folder / "voc", "held", NAMES), score_thresh=0.02)
    if metric == "coco":
        expected = eval_detection_coco(*lists, n_class=3)
    else:
        expected = eval_detection_voc(*lists, use_07_metric=metric == "voc07", n_class=3)
    assert figures["map"] == pytest.approx(expected["map"])
    assert figures["map"] > 0
    assert figures["ap"]["ant"] is None
    assert [figures["ap"][name] for name in NAMES[1:]] == pytest.approx(expected["ap"][1:])
    assert figures["n_object"] == {"ant": 0, "bee": 1, "cow": 2}
    labels = np.concatenate(lists[1])
    assert list(figures["n_detection"].values()) == np.bincount(labels, minlength=3).tolist()
    assert set(figures["summary"]) == set(expected.get("summary", {}))
    about = {"checkpoint": "net.pth", "step": 7, "data": "voc", "split": "held", "n_image": 3, "metric": metric}
    about |= {"precision": "fp32", "score_thresh": 0.02, "nms_thresh": 0.3, "max_detections": None}
    assert about.items() <= figures.items()

    printed = capsys.readouterr().out
    assert printed.startswith("net.pth: a checkpoint of this library, step 7\nvoc, split held: 3 images\n")
    assert f"\n{metric}: " in printed
    assert "\nfp32, scores above 0.02, NMS 0.3, all detections per image\nclass " in printed
    assert re.search(rf"^ant +n/a +0 .*\nbee .*\ncow .*\nmean +{figures['map']:.4f} +3 ", printed, re.M)
    assert printed.endswith("written to new/figures.json\n")


def test_limit_takes_the_first_images(run, folder, net):
    figures = run(limit=1, score_thresh=0.02)
    assert (figures["n_image"], figures["n_object"]) == (1, {"ant": 0, "bee": 1, "cow": 1})
    first = [column[:1] for column in detections(net, read(folder / "voc", "held", NAMES), score_thresh=0.02)]
    assert figures["map"] == pytest.approx(eval_detection_voc(*first, use_07_metric=True, n_class=3)["map"])


def test_images_of_the_training_are_counted(run, folder, capsys):
    save_checkpoint(folder / "leak.pth", torch.load(folder / "net.pth", weights_only=True) | {"ids": ["c", "d", "z"]})
    run(load_path="leak.pth")
    assert "\nnote: the training saw images with 1 of these ids\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("trained_on", "seen", "root", "ids", "n_seen"),
    [
        ("x,y", ["x/1", "y/2"], "x", ["1", "2"], 1),
        ("x", ["1", "sub/2"], "x,y", ["x/1", "x/2", "x/sub/2", "y/3"], 2),
        ("x", ["1", "2", "a/3"], "y", ["1", "3", "a/3", "b/3"], 2),  # a folder was renamed
    ],
)
def test_images_of_the_training_are_counted_in_other_folders(trained_on, seen, root, ids, n_seen):
    checkpoint = {"config": {"voc_data_dir": trained_on}, "ids": seen}
    assert count_seen(SimpleNamespace(root=Path(root), ids=ids), checkpoint) == n_seen


@pytest.mark.parametrize(("root", "n_seen"), [("x/images", 1), ("moved/images", 1), ("y/images", 0)])
def test_images_of_the_training_are_counted_in_coco_files(root, n_seen):
    trained = {"data": "coco", "coco_images": "x/images", "coco_eval_images": "y/images"}
    checkpoint = {"config": trained, "ids": ["1", "2"]}
    assert count_seen(SimpleNamespace(root=Path(root), ids=["1", "3"]), checkpoint) == n_seen


def test_other_images_of_the_same_names_are_not_counted(tmp_path):
    paths = [tmp_path / name for name in ("1", "2", "3")]
    for path in paths:
        path.write_bytes(bytes(int(path.name)))
    checkpoint = {"config": {"voc_data_dir": "x", "train_split": "a"}, "ids": ["1", "2"]}
    checkpoint["file_sizes"] = {"a": [1, 5], "b": [2]}
    for root, n_seen in (("y", 1), ("x", 2)):  # of another folder only those with a size of the training's
        dataset = SimpleNamespace(root=Path(root), ids=["1", "2", "3"], paths=paths)
        assert count_seen(dataset, checkpoint) == n_seen
    checkpoint["config"] |= {"data": "coco", "coco_images": "x", "coco_eval_images": "y"}
    for n, n_seen in ((1, 1), (2, 0)):  # of most, only the names are the same
        assert count_seen(SimpleNamespace(root=Path("y"), ids=["1", "2"][:n], paths=paths[:n]), checkpoint) == n_seen
    checkpoint["config"] = {"voc_data_dir": "x", "train_split": "a"}
    dataset = SimpleNamespace(root=Path("x"), ids=["cam1/1", "cam2/2", "2"], paths=paths)  # others of these names came
    assert count_seen(dataset, checkpoint) == 2


def test_options_that_are_given_replace_those_of_the_training(run, folder):
    assert run(split="other")["n_object"] == {"ant": 0, "bee": 0, "cow": 1}
    write_voc(folder / "more", {"a": thing("ant")}, "held")
    assert run(voc_data_dir="more")["n_object"] == {"ant": 1, "bee": 0, "cow": 0}
    write_voc(folder / "flat", {"a": thing("ant") + thing("bee", (5, 5, 5, 9))}, "held")
    with pytest.raises(DataError, match="without area"):
        run(voc_data_dir="flat")
    assert run(voc_data_dir="flat", invalid_boxes="skip")["n_object"] == {"ant": 1, "bee": 0, "cow": 0}


def test_detection_options_reach_the_model(run):
    figures = run(score_thresh=0.02, nms_thresh=0.9, max_detections=2)
    assert sum(figures["n_detection"].values()) == 6  # 2 in each of 3 images
    assert (figures["nms_thresh"], figures["max_detections"]) == (0.9, 2)
    figures = run()
    assert figures["score_thresh"] == 0.05  # the model's own


def test_data_with_another_class(run, folder):
    write_voc(folder / "dogs", {"a": thing("dog")}, "held")
    with pytest.raises(DataError, match="dog"):
        run(voc_data_dir="dogs")


def test_a_checkpoint_without_class_names(run, folder):
    with pytest.raises(OptionError, match=r"3 classes.*--classes=a,b,c"):
        run(load_path="nameless.pth")
    (folder / "names.txt").write_text("cow\nbee\nant\n")
    expected = {"cow": 2, "bee": 1, "ant": 0}
    for classes in ("cow,bee,ant", "names.txt"):
        figures = run(load_path="nameless.pth", classes=classes)
        assert list(figures["n_object"].items()) == list(expected.items())
    with pytest.raises(OptionError, match="ant, bee, cow"):
        run(classes="cow,bee,ant")  # net.pth has names of its own


def test_proposals(run, folder, capsys):
    figures = run(proposals=True, plot="drawn/recall.png")
    assert (figures["n_object"], figures["n_image"], figures["counts"]) == (3, 3, [50, 100, 300, 1000, 2000])
    recall = np.array(figures["recall"])
    assert recall.shape == (5, len(figures["iou_threshs"])) == (5, 10)
    assert ((recall >= 0) & (recall <= 1)).all()
    assert (np.diff(recall, axis=0) >= 0).all()
    assert (np.diff(recall, axis=1) <= 0).all()
    assert recall[-1, 0] > 0
    assert "map" not in figures
    with Image.open(folder / "drawn/recall.png") as picture:
        assert min(picture.size) > 300
    printed = capsys.readouterr().out
    assert "recall of 3 objects" in printed
    assert "drawn in drawn/recall.png\nwritten to new/figures.json\n" in printed


def test_the_plot_is_beside_the_checkpoint_unless_it_is_named(run, folder):
    run(proposals=True, limit=1)
    assert (folder / "net.recall.png").is_file()
    with pytest.raises(OptionError, match=r"--plot=a\.png draws recall or ablations: give --proposals"):
        run(plot="a.png")


def test_recall_without_objects_is_not_a_number_and_still_drawn(run, folder):
    write_voc(folder / "empty", {"a": ""}, "held")
    figures = run(proposals=True, voc_data_dir="empty", plot="drawn/empty.png")
    assert figures["n_object"] == 0
    assert figures["average"] == [None] * 5
    assert (folder / "drawn/empty.png").is_file()


@pytest.mark.parametrize("options", [{"json": "net.pth/a.json"}, {"json": "voc"}, {"plot": "net.pth/a.png"}])
def test_outputs_that_cannot_be_written_are_named_before_the_work(run, monkeypatch, options):
    monkeypatch.setattr(torch.nn.Module, "to", None)  # the network is not even moved to its device
    name = next(iter(options.values())).partition("/")[0]
    with pytest.raises(OSError, match=rf": '{name}'$"):  # `command` reports it in one line
        run(**options, proposals=True)


@pytest.mark.parametrize("option", ["json", "coco_json"])
def test_a_full_disk_is_named_and_the_table_printed(run, monkeypatch, capsys, option):
    def fsync(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("utils.checkpoint.os.fsync", fsync)
    with pytest.raises(OSError, match=r"No space left on device: 'new/full\.json'"):
        run(**{option: "new/full.json"})
    assert "\nmean " in capsys.readouterr().out


def test_ablations(run, folder, capsys):
    figures = run(ablate=True, score_thresh=0.02, plot="drawn/ablation.png")
    assert [(row["name"], row["n"]) for row in figures["rows"]] == [(k, n) for k, ns in PAPER.items() for n in ns]
    assert (figures["detector"], figures["metric"], figures["n_image"]) == (None, "voc07", 3)
    by_name = {(row["name"], row["n"]): row for row in figures["rows"]}
    assert by_name["RPN", 300]["map"] == pytest.approx(run(score_thresh=0.02)["map"]) != 0
    assert (folder / "drawn/ablation.png").is_file()
    printed = capsys.readouterr().out
    assert "the detector that was trained together with them" in printed
    assert "drawn in drawn/ablation.png\nwritten to new/figures.json\n" in printed


def test_a_detector_of_its_own_classifies_the_proposals(run, folder, net, detector):
    figures = run(ablate=True, detector="detector.pth", score_thresh=0.02)
    (row,) = [row for row in figures["rows"] if (row["name"], row["n"]) == ("RPN", 300)]
    # the same with the proposals in a file, which the detector's own sizes turn into its input
    rois = {}
    for sample in read(folder / "voc", "held", NAMES):
        x, scale = net.prepare(sample.img)
        with torch.no_grad():
            roi = net.eval()(x, scale).rpn.roi.numpy()
        rois[sample.id] = resize_bbox(roi, x.shape[2:], sample.img.shape[:2])
    write_proposals(folder / "rois", rois)  # any name
    assert [*read_proposals(folder / "rois")] == [*rois]
    write_proposals(folder / "rois.npz", rois)
    given = run(load_path="detector.pth", proposals_file="rois.npz", score_thresh=0.02)
    assert row["mean"] == np.mean([len(roi) for roi in rois.values()])
    assert row["map"] == pytest.approx(given["map"], abs=1e-6)
    others = [run(load_path=path, score_thresh=0.02)["map"] for path in ("net.pth", "detector.pth")]
    assert all(abs(other - given["map"]) > 1e-3 for other in others)
    with pytest.raises(OptionError, match=r"--detector=detector\.pth classifies"):
        run(detector="detector.pth")


def test_a_detector_trained_on_proposals_is_evaluated_on_them(run, folder, detector, capsys):
    checkpoint = torch.load(folder / "detector.pth", weights_only=True)
    checkpoint["config"] |= {"proposals_file": "sliding-windows", "anchor_scales": (1, 2), "min_size": 96}
    save_checkpoint(folder / "fast.pth", checkpoint)
    windows = run(load_path="fast.pth", score_thresh=0.02)
    assert "trained on the proposals of sliding-windows" in capsys.readouterr().out
    assert windows["map"] != pytest.approx(run(load_path="detector.pth", score_thresh=0.02)["map"], abs=1e-3)
    assert run(load_path="fast.pth", proposals=True, limit=1)["n_object"] == 2  # of its RPN


def test_truncated_svd(run):
    before, after = run(score_thresh=0.02), run(score_thresh=0.02, svd=(16, 16))
    assert after["map"] == pytest.approx(before["map"], abs=1e-5)  # full rank
    assert run(score_thresh=0.02, svd=(1, 1))["n_detection"] != before["n_detection"]
    with pytest.raises(CheckpointError, match=r"net\.pth cannot be used: .*no 17 singular values"):
        run(svd=(17, 2))


def test_a_checkpoint_that_cannot_be_built_is_named(run):
    with pytest.raises(CheckpointError, match=r"^odd\.pth cannot be used: .*n_head"):
        run(load_path="odd.pth")


# COCO


def test_the_metric_and_the_results_are_those_of_pycocotools_on_the_same_file(run, folder, net):
    crowd = {"image_id": 90, "category_id": 5, "bbox": [0, 0, 40, 39], "iscrowd": 1, "area": 1400}
    bee = {"image_id": 90, "category_id": 90, "bbox": [6, 10, 51, 25], "area": 50}  # of a mask; its box is larger
    cow = {"image_id": 17, "category_id": 5, "bbox": [4, 4, 50, 30]}
    coco = {
        "images": [{"id": 90, "file_name": "a.png"}, {"id": 17, "file_name": "b.png"}, {"id": 4, "file_name": "c.png"}]
    }
    coco |= {"categories": [{"id": 90, "name": "bee"}, {"id": 5, "name": "cow"}]}  # no ant
    objects = [{"iscrowd": 0, "area": 1500} | obj | {"id": i} for i, obj in enumerate((crowd, bee, cow), start=1)]
    (folder / "coco.json").write_text(json.dumps(coco | {"annotations": objects}))
    files = {"coco_eval_images": "voc/JPEGImages", "coco_eval_annotations": "coco.json"}
    figures = run(**files, coco_json="new/results.json", score_thresh=0.02)
    assert (figures["metric"], figures["split"], figures["data"]) == ("coco", "held", "voc/JPEGImages")
    assert figures["n_object"] == {"ant": 0, "bee": 1, "cow": 1}

    official = COCO(folder / "coco.json")
    rows = json.loads((folder / "new/results.json").read_text())
    assert {row["category_id"] for row in rows} == {90, 5}
    assert {row["image_id"] for row in rows} == {90, 17, 4}
    assert len(rows) == sum(figures["n_detection"].values()) - figures["n_detection"]["ant"]
    evaluation = COCOeval(official, official.loadRes(rows), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    ours = [-1 if value is None else value for value in figures["summary"].values()]
    assert ours == pytest.approx(evaluation.stats.tolist(), abs=1e-9)
    assert figures["summary"]["AP_small"] is not None  # the bee by its mask
    assert run(**files, metric="voc07")["metric"] == "voc07"
    with pytest.raises(OptionError, match="leave out --proposals"):
        run(coco_json="a.json", proposals=True)
    run(**files, coco_json="new/results.json", limit=1)  # results are replaced, annotations are not
    with pytest.raises(OptionError, match=r"^--coco-json=coco\.json exists and holds no results"):
        run(**files, coco_json="coco.json")
    with pytest.raises(OptionError, match=r"^--json=coco\.json exists and holds no results"):
        run(**files, json="coco.json")
    with pytest.raises(OptionError, match=r"^a\.json is named for two outputs"):
        run(**files, json="a.json", coco_json="a.json")
    assert json.loads((folder / "coco.json").read_text())["annotations"] == objects


def test_results_of_other_data_have_names_and_numbers_from_1(run, folder):
    run(coco_json="new/results.json", limit=2, score_thresh=0.02)
    rows = json.loads((folder / "new/results.json").read_text())
    assert {row["image_id"] for row in rows} == {"a", "b"}
    assert {row["category_id"] for row in rows} <= {1, 2, 3}
