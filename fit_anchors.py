"""Do the anchors fit the objects? `python train.py anchors --voc-data-dir=DIR`.

Three sets of shapes are compared on the boxes of the training split: the anchors in use; the grid of scales x ratios
that fits best, which `train.py train` takes; and free clusters, which no options give, as what k shapes can reach.

By size: a box meets shapes on its own centre. In place: it meets the anchors of its image, at every cell, those
inside the image, which alone are trained on. The difference is the price of the stride and of the border.

N: boxes of all images. G: boxes of one. k: anchors at a cell. K: anchors of an image.
"""

import dataclasses
import shlex
from functools import cache
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from data import class_names, find_root, find_splits
from data.check import DataError
from data.transforms import scale_bbox
from data.voc import VOCDataset
from model.utils.anchors import enumerate_shifted_anchor
from model.utils.bbox_tools import bbox_iou
from model.utils.preprocess import resized_size
from utils.anchor_clusters import best_grid, fit_clusters, grid_size, size_iou
from utils.anchor_plot import plot_anchors
from utils.config import TrainConfig, as_text, dashed
from utils.outputs import check_outputs, writing

STRIDE = 16  # of VGG16's feature map


class Fit(NamedTuple):
    """How well a set of shapes fits the boxes."""

    name: str
    size: np.ndarray  # (k, 2) heights and widths
    by_size: np.ndarray  # (N,) best IoU with a shape on the same centre
    in_place: np.ndarray  # (N,) best IoU with an anchor inside the image
    inside: float  # the share of the anchors that lie inside their image


def fit_anchors(config):
    """Compares the anchors of an `AnchorConfig` with those that fit its data set; prints, and draws a picture."""
    check_outputs(config.out)
    bboxes, img_sizes, shortest = read_boxes(config)
    bbox = np.concatenate(bboxes)  # (N, 4)
    size = (bbox[:, 2:] - bbox[:, :2]).astype(float)  # (N, 2)
    scales, ratios, clusters = propose(config, size)
    use = in_words(config.anchor_scales, config.anchor_ratios)
    grid = in_words(scales, ratios)
    shapes = {
        "in use": centred(grid_size(config.anchor_scales, config.anchor_ratios, STRIDE)),
        "proposed": centred(grid_size(scales, ratios, STRIDE)),
        "clusters": centred(clusters),
    }
    placed = [in_place(anchor_base, bboxes, img_sizes, name) for name, anchor_base in shapes.items()]
    fits = [
        Fit(name, base[:, 2:] - base[:, :2], size_iou(size, (base[:, 2:] - base[:, :2]).astype(float)).max(1), *at)
        for (name, base), at in zip(shapes.items(), placed, strict=True)
    ]

    print(
        f"{len(clusters)} clusters of {len(size)} boxes, in pixels after the resize (--min-size={config.min_size}, "
        f"--max-size={config.max_size})\n{cluster_table(size, clusters)}\n\n{fit_table(fits)}"
    )
    print(
        "by size: shapes on the centre of the box; in place: the anchors at every cell that lie inside the image\n\n"
        f"in use:   {use}\nproposed: {grid}"
    )
    least = TrainConfig.rpn_min_size
    if (shortest < least).any():
        print(
            f"{(shortest < least).mean():.1%} of the objects have a side below {least:g} pixels of the image; "
            f"proposals as small are dropped at --rpn-min-size={least:g}: give a smaller one"
        )
    with writing(config.out):
        plot_anchors(size, fits, config.out)
    print(f"drawn in {config.out}\nnext: python train.py train {given(config)}{grid}")


def read_boxes(config):
    """The boxes of the images of a split as training sees them.

    Returns:
        (G, 4) boxes of each image after the resize, (H', W') of each image, (N,) shortest sides before the resize.
    """
    root = find_root(config.data, config.voc_data_dir)
    classes = class_names(config.classes, root, (config.train_split,))
    dataset = VOCDataset(root, config.train_split, classes, config.use_difficult, config.invalid_boxes)
    originals = dataset.sizes()
    bboxes = dataset.objects()[0]
    n_box = sum(map(len, bboxes))
    if not n_box:
        raise DataError(
            f"{root}: the images of {config.train_split} have no object (difficult ones count with "
            "--use-difficult), so there is nothing to fit anchors to"
        )
    print(
        f"{root}: {n_box} boxes on {len(dataset)} images of {config.train_split}", *dataset.findings.noted(), sep="\n"
    )
    resized = [resized_size(*size, config.min_size, config.max_size)[:2] for size in originals]
    shortest = np.concatenate([(bbox[:, 2:] - bbox[:, :2]).min(1) for bbox in bboxes])  # (N,)
    return [scale_bbox(*args) for args in zip(bboxes, originals, resized, strict=True)], resized, shortest


def propose(config, size):
    """The scales and ratios of the best grid, rounded as they are printed, and the free clusters (k, 2).

    Numbers that are the same when rounded are one: an anchor that comes twice finds nothing more.
    """
    rng = np.random.default_rng(config.seed)
    start = config.anchor_scales, config.anchor_ratios
    k = config.k or len(start[0]) * len(start[1])
    grid = best_grid(size, k, rng, start)[:2]
    scales, ratios = (sorted({float(f"{number:.3g}") for number in numbers}) for numbers in grid)
    return scales, ratios, fit_clusters(size, k, rng, grid_size(scales, ratios, STRIDE))


def centred(size):
    """(k, 2) heights and widths as anchors of the cell at the origin: (k, 4) float32."""
    return np.concatenate((STRIDE / 2 - size / 2, STRIDE / 2 + size / 2), 1).astype(np.float32)


def in_place(anchor_base, bboxes, img_sizes, name=None):
    """The best IoU of each box with the anchors that lie inside its image.

    Args:
        anchor_base: (k, 4) anchors of the cell at the origin.
        bboxes: (G, 4) boxes of each image.
        img_sizes: (H, W) of each image, both after the resize.
        name: written before the progress bar.

    Returns:
        (N,) IoU, 0 for a box that no such anchor touches, and the share of the anchors that lie inside.
    """

    @cache
    def anchors(height, width):  # many images are of one size
        # VGG16's four poolings round down
        anchor = enumerate_shifted_anchor(anchor_base, STRIDE, height // STRIDE, width // STRIDE)  # (K, 4)
        inside = (anchor[:, :2] >= 0).all(1) & (anchor[:, 2] <= height) & (anchor[:, 3] <= width)  # (K,)
        return anchor[inside], len(anchor)

    best, n_inside, n_anchor = [], 0, 0
    for bbox, img_size in zip(tqdm(bboxes, desc=name, unit="img", leave=False), img_sizes, strict=True):
        inside, n = anchors(*img_size)
        best.append(bbox_iou(inside, bbox).max(0, initial=0))  # (G,)
        n_inside, n_anchor = n_inside + len(inside), n_anchor + n
    return np.concatenate(best), n_inside / n_anchor


def cluster_table(size, clusters):
    """The clusters as lines of text: shape, scale, ratio, and the share of the boxes that are nearest to it."""
    share = np.bincount(size_iou(size, clusters).argmax(1), minlength=len(clusters)) / len(size)
    lines = ["height  width   scale   ratio   boxes"]
    for (height, width), part in zip(clusters, share, strict=True):
        lines.append(
            f"{height:6.0f} {width:6.0f} {np.sqrt(height * width) / STRIDE:7.2f} {height / width:7.2f} {part:7.1%}"
        )
    return "\n".join(lines)


def fit_table(fits):
    """How well each `Fit` fits, as lines of text: mean best IoU and recall."""
    columns = "mean IoU   recall at 0.5  at 0.7"
    lines = [f"{'':12}{'by size':35}in place", f"{'anchors':12}{columns}    {columns}    anchors inside"]
    for fit in fits:
        cells = [
            f"{iou.mean():8.3f}   {(iou >= 0.5).mean():13.3f}  {(iou >= 0.7).mean():6.3f}"
            for iou in (fit.by_size, fit.in_place)
        ]
        lines.append(f"{fit.name:12}{cells[0]}    {cells[1]}    {fit.inside:14.0%}")
    return "\n".join(lines)


def in_words(scales, ratios):
    """Scales and ratios as options of `train.py train`."""
    return f"--anchor-scales={as_text(tuple(scales))} --anchor-ratios={as_text(tuple(ratios))}"


def given(config):
    """The options of `config` that training should get too: those that differ from its defaults, but for anchors.

    And a split to evaluate on, where the data set lacks that of the defaults.
    """
    words = ""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not field.name.startswith("anchor_") and value != getattr(TrainConfig, field.name, value):
            words += f"--{dashed(field.name)}={shlex.quote(as_text(value))} "
    splits = find_splits(find_root(config.data, config.voc_data_dir))
    if TrainConfig.eval_split not in splits:
        others = [split for split in splits if split != config.train_split]
        words += f"--eval-split={shlex.quote((others or splits)[-1])} "
    return words
