"""`tools.fit_anchors` on few boxes: shapes that are found again, boxes in place against loops, what is printed."""

import re

import fire
import numpy as np
import pytest
import torch
from PIL import Image

import model
from data.validate import DataError
from model.utils.anchors import generate_anchor_base
from model.utils.bbox_tools import bbox_iou
from tools.fit_anchors import (
    AnchorConfig,
    centred,
    fit_grid,
    in_place,
    kmeans,
    main,
    network_sizes,
    read_dataset,
    side_lengths,
)
from utils.coco_eval import proposal_recall
from utils.command import command
from utils.config import OptionError, TrainConfig


def rng():
    return np.random.default_rng(4)


def grid_size(scales, ratios, stride=16):
    return side_lengths(generate_anchor_base(stride, ratios, scales))


def write_voc(root, objects, img_size=(40, 60), difficult=0):
    """A split "trainval" of images id -> boxes (y_min, x_min, y_max, x_max), continuous, all of the class "bolt"."""
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets/Main/trainval.txt").write_text("\n".join(objects))
    for image_id, boxes in objects.items():
        things = "".join(
            f"<object><name>bolt</name><difficult>{difficult}</difficult><bndbox><ymin>{b[0] + 1}</ymin>"
            f"<xmin>{b[1] + 1}</xmin><ymax>{b[2] + 1}</ymax><xmax>{b[3] + 1}</xmax></bndbox></object>"
            for b in boxes
        )
        (root / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>{things}</annotation>")
        Image.new("RGB", img_size[::-1]).save(root / "JPEGImages" / f"{image_id}.png")
    return root


def config(root, **options):
    options = {"voc_data_dir": str(root), "min_size": 80, "max_size": 200, "anchor_scales": (1.0, 2.0)} | options
    return AnchorConfig(**({"anchor_ratios": (0.5, 1, 2), "out": str(root / "fit.png")} | options))


# k-means and the grid


def test_two_obvious_clusters_are_found():
    # sides 8 and 64, 90 and 30 times 1 / 1.25 and 1.25: the geometric mean is in the middle
    flat, high = np.array([8, 64]), np.array([90, 30])
    size = np.concatenate([flat * [[0.8, 1], [1.25, 1], [1, 0.8], [1, 1.25]], high * [[0.8, 0.8], [1.25, 1.25]]])
    found = np.exp(kmeans(np.log(size), 2, rng()))
    np.testing.assert_allclose(found[np.argsort(found[:, 0])], [flat, high], rtol=1e-12)


def test_fewer_values_than_clusters():
    values = np.log([[50, 9], [4, 7], [50, 9]])
    np.testing.assert_array_equal(kmeans(values, 3, rng()), values[[1, 0]])


def test_the_same_seed_finds_the_same():
    values = rng().normal(size=(80, 2))
    np.testing.assert_array_equal(kmeans(values, 5, rng()), kmeans(values, 5, rng()))


def test_a_grid_is_found_again_among_noise():
    count = (9, 30, 90, 25, 120, 16)
    size = np.repeat(grid_size((1.5, 4, 11), (0.4, 2)), count, axis=0)
    noise = np.exp(np.random.default_rng(6).normal(0, 0.1, size.shape))
    scales, ratios = fit_grid(size * noise, 6, 16, rng())
    np.testing.assert_allclose(scales, [1.5, 4, 11], rtol=0.04)
    np.testing.assert_allclose(ratios, [0.4, 2], rtol=0.04)


@pytest.mark.parametrize("true", [((1, 2, 4, 8), (0.7,)), ((3,), (0.2, 1, 3, 9)), ((2, 8), (1, 3))])
@pytest.mark.parametrize("stride", [8, 16])
def test_the_best_of_all_factorizations_in_units_of_the_stride(true, stride):
    assert fit_grid(grid_size(*true, stride), 4, stride, rng()) == [list(numbers) for numbers in true]


def test_a_number_that_comes_twice_is_proposed_once():
    assert fit_grid(np.array([[32.0, 32], [16, 16]]), 4, 16, rng()) == [[1, 2], [1]]


def test_a_grid_is_better_than_the_papers():
    size = np.exp(np.random.default_rng(1).normal((3, 4), (0.8, 0.5), (80, 2)))
    scales, ratios = fit_grid(size, 9, 16, rng())
    assert 4 < len(scales) * len(ratios) <= 9
    fitted, papers = (
        bbox_iou(centred(size, 16), generate_anchor_base(16, *grid)).max(1).mean()
        for grid in ((ratios, scales), ((0.5, 1, 2), (8, 16, 32)))
    )
    assert fitted > papers + 0.3


# Anchors in place


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


def cells(img_sizes):
    return [(height // 16, width // 16) for height, width in img_sizes]


def test_anchors_have_the_places_of_the_model():
    scales, ratios = (1, 3), (0.5, 2, 3)
    want = generate_anchor_base(16, ratios, scales)
    np.testing.assert_allclose(centred(grid_size(scales, ratios), 16), want, rtol=1e-5)


def test_in_place_by_hand():
    # one anchor, 16 x 32, at two rows and four columns, of which the middle two lie inside: x 8 to 40 and 24 to 56
    base = centred(np.array([[16.0, 32.0]]), 16)
    boxes = np.array([[16, 24, 32, 56], [0, 8, 8, 40], [16, 40, 32, 72], [33, 0, 34, 64]], np.float32)
    best, inside = in_place(base, 16, [boxes], [(34, 64)], [(2, 4)])
    np.testing.assert_allclose(best, [1, 0.5, 1 / 3, 0])  # 16 of 48 columns; the last below all of them
    assert inside == 0.5


def test_in_place_against_loops():
    rng, size = np.random.default_rng(2), grid_size((0.7, 2.1), (0.6, 1.9))
    img_sizes = [(67, 98), (50, 120), (67, 98)]
    corner = [rng.uniform(0, 30, (n, 2)) for n in (3, 0, 5)]
    bboxes = [np.concatenate([c, c + rng.uniform(4, 40, c.shape)], 1).astype(np.float32) for c in corner]
    best, inside = in_place(centred(size, 16), 16, bboxes, img_sizes, cells(img_sizes))
    slow = [slow_best(box, at, size) for boxes, at in zip(bboxes, img_sizes, strict=True) for box in boxes.tolist()]
    np.testing.assert_allclose(best, [iou for iou, _ in slow], atol=1e-5)
    shares = [slow_best((0, 0, 1, 1), at, size)[1] for at in img_sizes]
    assert inside == pytest.approx(np.average(shares, weights=[h * w for h, w in cells(img_sizes)]))


def test_an_image_in_which_no_anchor_fits():
    box = np.array([[1, 2, 9, 8]], np.float32)
    best, inside = in_place(centred(np.array([[90.0, 10.0]]), 16), 16, [box], [(40, 50)], [(2, 3)])
    assert (best.tolist(), inside) == ([0.0], 0.0)


def test_recall_is_that_of_proposals():
    """The recall by `utils.metrics`, where the anchors inside the image are the proposals."""
    rng, size = np.random.default_rng(3), grid_size((1, 2), (0.5, 2))
    corner = rng.integers(0, 40, (20, 2))
    boxes = np.concatenate([corner, corner + rng.integers(9, 41, (20, 2))], 1).astype(np.float32)
    best, _ = in_place(centred(size, 16), 16, [boxes], [(80, 112)], [(5, 7)])
    shift = np.array([(16 * y, 16 * x) * 2 for y in range(5) for x in range(7)], np.float32)
    anchor = (shift[:, None] + centred(size, 16)).reshape(-1, 4)
    anchor = anchor[(anchor[:, :2] >= 0).all(1) & (anchor[:, 2] <= 80) & (anchor[:, 3] <= 112)]
    recall = proposal_recall([anchor], [boxes], None, [len(anchor)], [0.5, 0.7])["recall"][0]
    np.testing.assert_allclose([(best >= t).mean() for t in (0.5, 0.7)], recall)
    assert 0 < recall[1] < recall[0] < 1


@pytest.mark.parametrize("img_size", [(64, 96), (79, 97), (111, 100)])
def test_sizes_are_those_of_the_model(img_size):
    with torch.device("meta"):
        meta = model.build(min_size=90, max_size=120)
    real = model.build(min_size=90, max_size=120, head_width=1)
    img, _ = real.prepare(np.zeros((*img_size, 3), np.uint8))
    assert network_sizes(meta, *img_size) == (img.shape[2:], real.extractor(img).shape[2:])


# The command


def test_what_is_printed_and_drawn(tmp_path, capsys):
    # all boxes are 16 x 64 after the resize: one shape fits them, ratio 1/4, scale 2
    root = write_voc(tmp_path, {"a": [(4, 10, 12, 42)], "b": [(16, 4, 24, 36), (30, 20, 38, 52)]})
    words = ["--voc-data-dir", str(root), "--min-size=80", "--max-size=200", "--k=1", f"--out={root / 'new/fit.png'}"]
    fire.Fire(command(AnchorConfig, main, defaults=model.defaults), command=words)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"3 objects on 2 images of trainval in {root}"
    assert "in use:   --anchor-scales=8,16,32 --anchor-ratios=0.5,1,2" in lines
    assert "proposed: --anchor-scales=2 --anchor-ratios=0.25" in lines
    assert any(line.startswith("100.0% of the objects have a side below 16 pixels") for line in lines)
    in_use, proposed = (re.findall(r"[\d.]+", line) for line in lines if line.startswith(("in use  ", "proposed  ")))
    assert in_use[3:6] == ["0.000"] * 3  # no anchor of 128 pixels lies inside
    assert proposed[:3] == ["1.000"] * 3
    boxes = np.array([[8, 20, 24, 84], [32, 8, 48, 72], [60, 40, 76, 104]])
    best = np.array([slow_best(box, (80, 120), [(16, 64)])[0] for box in boxes.tolist()])
    assert proposed[3:6] == [f"{best.mean():.3f}", f"{(best >= 0.5).mean():.3f}", f"{(best >= 0.7).mean():.3f}"]
    with Image.open(root / "new/fit.png") as img:
        assert img.size == (800, 600)


def test_the_last_line_is_a_command_that_training_takes(tmp_path, capsys):
    root = write_voc(tmp_path / "two words", {"a": [(4, 10, 12, 42), (1, 2, 33, 44)]})
    checks = {"invalid_boxes": "skip", "invalid_images": "skip", "unknown_classes": "ignore", "val_ratio": 0.5}
    checks |= {"eval_split": "held", "model": "zf", "seed": 3, "use_difficult": True}
    main(config(root, **checks, k=2))
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("next: python train.py train ")
    calls = []
    words = [word.replace("'", "") for word in re.findall(r"--\S+?='[^']*'|--\S+", line)]
    fire.Fire(command(TrainConfig, calls.append), command=words)
    wanted = TrainConfig(voc_data_dir=str(root), **checks, min_size=80, max_size=200)
    assert len(calls[0].anchor_scales) * len(calls[0].anchor_ratios) == 2
    assert calls[0].model_copy(update={"anchor_scales": None, "anchor_ratios": None}) == wanted


@pytest.mark.parametrize("classes", [(), ("bolt",)])
def test_nothing_to_fit(tmp_path, classes):
    root = write_voc(tmp_path, {"a": []})
    with pytest.raises(DataError):
        main(config(root, classes=classes))
    assert not (root / "fit.png").exists()


def test_a_model_without_options_for_anchors():
    with pytest.raises(OptionError, match=r"^--model=vgg16 has no options for its anchors"):
        main(AnchorConfig(min_size=64, max_size=96))


def test_difficult_objects_count_if_asked_for(tmp_path, capsys):
    root = write_voc(tmp_path, {"a": [(4, 10, 12, 42)]}, difficult=1)
    with pytest.raises(DataError, match="--use-difficult"):
        read_dataset(config(root))
    assert len(read_dataset(config(root, use_difficult=True)).bboxes[0]) == 1
    assert "1 object on 1 image " in capsys.readouterr().out
