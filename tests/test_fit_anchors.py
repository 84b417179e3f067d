"""`train.py anchors` on a few images: boxes in place against loops, what is printed, drawn and refused."""
import re

import fire
import numpy as np
import pytest
import torch
from PIL import Image

from fit_anchors import centred, fit_anchors, given, in_place, read_boxes
from model.utils.anchors import generate_anchor_base
from utils.anchor_clusters import grid_size
from utils.config import AnchorConfig, TrainConfig, command, make_config
from utils.recall import proposal_recall


def write_voc(root, objects, img_size=(40, 60), difficult=0):
    """A split "trainval" of images id -> boxes (y_min, x_min, y_max, x_max), continuous, all of the class "bolt"."""
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets/Main/trainval.txt").write_text("\n".join(objects))
    for image_id, boxes in objects.items():
        things = "".join(
            f"<object><name>bolt</name><difficult>{difficult}</difficult><bndbox><ymin>{b[0] + 1}</ymin>"
            f"<xmin>{b[1] + 1}</xmin><ymax>{b[2] + 1}</ymax><xmax>{b[3] + 1}</xmax></bndbox></object>" for b in boxes)
        (root / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>{things}</annotation>")
        Image.new("RGB", img_size[::-1]).save(root / "JPEGImages" / f"{image_id}.png")
    return root


def config(root, **options):
    return AnchorConfig(**{"voc_data_dir": str(root), "min_size": 80, "max_size": 200, "anchor_scales": (1.0, 2.0),
                           "out": str(root / "fit.png")} | options)


def slow_best(box, img_size, size):
    """The best IoU of a box with any of the shapes at any cell, inside the image."""
    best, n_inside, n_anchor = 0.0, 0, 0
    for cell_y in range(img_size[0] // 16):
        for cell_x in range(img_size[1] // 16):
            for height, width in size:
                y, x = 16 * cell_y + 8 - height / 2, 16 * cell_x + 8 - width / 2
                n_anchor += 1
                if y < 0 or x < 0 or y + height > img_size[0] or x + width > img_size[1]:
                    continue
                n_inside += 1
                inter_h = min(y + height, box[2]) - max(y, box[0])
                inter_w = min(x + width, box[3]) - max(x, box[1])
                if inter_h > 0 and inter_w > 0:
                    inter = inter_h * inter_w
                    union = height * width + (box[2] - box[0]) * (box[3] - box[1]) - inter
                    best = max(best, inter / union)
    return best, n_inside / n_anchor


def test_anchors_have_the_places_of_the_model():
    scales, ratios = (1, 3), (0.5, 2, 3)
    np.testing.assert_allclose(centred(grid_size(scales, ratios)), generate_anchor_base(16, ratios, scales), rtol=1e-5)


def test_in_place_by_hand():
    # one anchor, 16 x 32, at two rows and four columns, of which the middle two lie inside: x 8 to 40 and 24 to 56
    base = centred(np.array([[16.0, 32.0]]))
    boxes = np.array([[16, 24, 32, 56], [0, 8, 8, 40], [16, 40, 32, 72], [33, 0, 34, 64]], np.float32)
    best, inside = in_place(base, [boxes], [(34, 64)])
    np.testing.assert_allclose(best, [1, 0.5, 1 / 3, 0])  # 16 of 48 columns; the last below all of them
    assert inside == 0.5


def test_in_place_against_loops():
    rng, size = np.random.default_rng(2), grid_size((0.7, 2.1), (0.6, 1.9))
    img_sizes = [(67, 98), (50, 120), (67, 98)]
    corner = [rng.uniform(0, 30, (n, 2)) for n in (3, 0, 5)]
    bboxes = [np.concatenate([c, c + rng.uniform(4, 40, c.shape)], 1).astype(np.float32) for c in corner]
    best, inside = in_place(centred(size), bboxes, img_sizes)
    slow = [slow_best(box, at, size) for boxes, at in zip(bboxes, img_sizes, strict=True) for box in boxes.tolist()]
    np.testing.assert_allclose(best, [iou for iou, _ in slow], atol=1e-5)
    shares = [slow_best((0, 0, 1, 1), at, size)[1] for at in img_sizes]
    n_anchor = [at[0] // 16 * (at[1] // 16) for at in img_sizes]
    assert inside == pytest.approx(np.average(shares, weights=n_anchor))


def test_an_image_in_which_no_anchor_fits():
    best, inside = in_place(centred(np.array([[90.0, 10.0]])), [np.array([[1, 2, 9, 8]], np.float32)], [(40, 50)])
    assert (best.tolist(), inside) == ([0.0], 0.0)


@pytest.mark.parametrize("img_size", [(64, 96), (79, 97), (100, 111)])
def test_the_feature_map_is_as_large_as_that_of_the_model(tiny_model, img_size):
    feature = tiny_model.extractor(torch.zeros(1, 3, *img_size))
    assert tuple(feature.shape[2:]) == (img_size[0] // 16, img_size[1] // 16)


def test_boxes_are_those_that_training_sees(tmp_path):
    root = write_voc(tmp_path, {"a": [(4, 10, 12, 40)], "none": [], "b": [(0, 0, 30, 20), (5, 5, 10, 50)]})
    bboxes, img_sizes, shortest = read_boxes(config(root))
    assert img_sizes == [(80, 120)] * 3
    np.testing.assert_allclose(np.concatenate(bboxes), [[8, 20, 24, 80], [0, 0, 60, 40], [10, 10, 20, 100]])
    np.testing.assert_allclose(shortest, [8, 20, 5])  # before the resize


def test_what_is_printed_and_drawn(tmp_path, capsys):
    # all boxes are 16 x 64 after the resize: one shape fits them, ratio 1/4, scale 2
    root = write_voc(tmp_path, {"a": [(4, 10, 12, 42)], "b": [(16, 4, 24, 36), (30, 20, 38, 52)]})
    words = ["--voc-data-dir", str(root), "--min-size=80", "--max-size=200", "--k=1", f"--out={root / 'fit.png'}"]
    fire.Fire(command(AnchorConfig, fit_anchors), command=words)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{root}: 3 boxes on 2 images of trainval"
    assert "    16     64    2.00    0.25  100.0%" in lines
    assert "in use:   --anchor-scales=8,16,32 --anchor-ratios=0.5,1,2" in lines
    assert "proposed: --anchor-scales=2 --anchor-ratios=0.25" in lines
    assert any(line.startswith("100.0% of the objects have a side below 16 pixels") for line in lines)
    by_size, place = (re.findall(r"[\d.]+", line) for line in lines if line.startswith(("in use  ", "proposed  ")))
    assert by_size[3:6] == ["0.000"] * 3  # no anchor of 128 pixels lies inside
    assert place[:3] == ["1.000"] * 3
    boxes = np.concatenate(read_boxes(config(root))[0])
    best = np.array([slow_best(box, (80, 120), [(16, 64)])[0] for box in boxes.tolist()])
    assert place[3:6] == [f"{best.mean():.3f}", f"{(best >= 0.5).mean():.3f}", f"{(best >= 0.7).mean():.3f}"]
    assert lines[-2] == f"drawn in {root / 'fit.png'}"
    with Image.open(root / "fit.png") as img:
        assert img.size == (1300, 600)


def test_the_last_line_is_a_command_that_training_takes(tmp_path, capsys):
    root = write_voc(tmp_path / "two words", {"a": [(4, 10, 12, 42), (1, 2, 33, 44)]})
    fit_anchors(config(root, invalid_boxes="skip", k=2))
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("next: python train.py train --voc-data-dir='")
    calls = []
    words = [word.replace("'", "") for word in re.findall(r"--\S+?='[^']*'|--\S+", line)]
    fire.Fire(command(TrainConfig, calls.append), command=words)
    wanted = {"voc_data_dir": str(root), "invalid_boxes": "skip", "min_size": "80", "max_size": "200",
              "eval_split": "trainval"}
    scales, ratios = ((calls[0].anchor_scales, calls[0].anchor_ratios))
    assert len(scales) * len(ratios) == 2
    assert calls[0] == make_config(TrainConfig, wanted, {"anchor_scales": scales, "anchor_ratios": ratios})


def test_the_last_line_names_a_split_to_evaluate_on(tmp_path):
    write_voc(tmp_path, {"a": [(4, 10, 12, 42)]})
    split = tmp_path / "ImageSets/Main/trainval.txt"
    for others, words in ((("val",), "--eval-split=val "), (("train", "val", "test"), "")):
        for name in others:
            (split.with_name(f"{name}.txt")).write_text(split.read_text())
        assert given(AnchorConfig(voc_data_dir=str(tmp_path))) == f"--voc-data-dir={tmp_path} {words}"


def test_a_number_that_comes_twice_is_proposed_once(tmp_path, capsys):
    # squares of eight sizes, and boxes three times as wide as tall: a third ratio helps nobody
    boxes = [(0, 0, side, side) for side in range(5, 37, 4)] + [(0, 0, side, 3 * side) for side in (4, 8, 12, 16)]
    root = write_voc(tmp_path, {"a": boxes})
    fit_anchors(config(root, anchor_scales=(1.0, 2.0, 4.0), out=str(tmp_path / "new/fit.png")))
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("proposed: "))
    for numbers in (words.split("=")[1].split(",") for words in line.split()[1:]):
        assert len(set(numbers)) == len(numbers)
    assert line.endswith("--anchor-ratios=0.333,1")
    assert (tmp_path / "new/fit.png").is_file()  # its folder is made


def test_recall_is_that_of_proposals(tmp_path):
    """The recall by `utils.recall`, where the anchors inside the image are the proposals."""
    rng, size = np.random.default_rng(3), grid_size((1, 2), (0.5, 2))
    corner = rng.integers(0, 40, (20, 2))
    boxes = np.concatenate([corner, corner + rng.integers(9, 41, (20, 2))], 1).astype(np.float32)
    best, _ = in_place(centred(size), [boxes], [(80, 112)])
    shift = np.array([(16 * y, 16 * x) * 2 for y in range(5) for x in range(7)], np.float32)
    anchor = (shift[:, None] + centred(size)).reshape(-1, 4)
    anchor = anchor[(anchor[:, :2] >= 0).all(1) & (anchor[:, 2] <= 80) & (anchor[:, 3] <= 112)]
    recall = proposal_recall([anchor], [boxes], None, [len(anchor)], [0.5, 0.7])["recall"][0]
    np.testing.assert_allclose([(best >= t).mean() for t in (0.5, 0.7)], recall)
    assert 0 < recall[1] < recall[0] < 1


@pytest.mark.parametrize(("options", "words"), [
    ({}, "no image of trainval has an object"),
    ({"classes": ("bolt",)}, "the images of trainval have no object"),
])
def test_nothing_to_fit(tmp_path, options, words):
    root = write_voc(tmp_path, {"a": []})
    with pytest.raises(ValueError, match=words):
        fit_anchors(config(root, **options))
    assert not (root / "fit.png").exists()


def test_difficult_objects_count_if_asked_for(tmp_path, capsys):
    root = write_voc(tmp_path, {"a": [(4, 10, 12, 42)]}, difficult=1)
    with pytest.raises(ValueError, match="--use-difficult"):
        fit_anchors(config(root))
    fit_anchors(config(root, use_difficult=True))
    assert "1 boxes on 1 images" in capsys.readouterr().out
