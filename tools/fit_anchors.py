"""Compare anchors with the objects of a data set: `python -m tools.fit_anchors --voc-data-dir=DIR`.

The anchors in use are compared with a proposed grid of scales x ratios.

By size: IoU of an object and a shape with the same centre. In place: IoU of an object and the anchors of its image that
lie inside the image, as in training. The difference is the cost of the stride and of the border.

Shapes: N objects of all images, G of one, k anchors per cell, K anchors of an image, S scales and R ratios.
"""

from functools import cache
from typing import NamedTuple

import fire
import numpy as np
import torch
from scipy.cluster import vq
from tqdm import tqdm

import data
import model
from data.validate import DataError, check_objects
from model.rpn import RegionProposalNetwork
from model.utils.anchors import enumerate_shifted_anchor, generate_anchor_base
from model.utils.bbox_tools import bbox_iou, resize_bbox
from utils.command import command
from utils.config import Count, OptionError, PathText, TrainInputConfig, as_words, counted, option
from utils.vis import plot_file, set_log_scale

N_START = 10  # random starts of k-means, of which the best is taken
LOOKS = (("#d62728", "s"), ("#1f77b4", "D"))  # colour and marker of each set of anchors


class AnchorConfig(TrainInputConfig):
    """python -m tools.fit_anchors: Compare anchors with the objects of a data set, and propose better ones.

    example: python -m tools.fit_anchors --voc-data-dir=MYDATA --train-split=train --eval-split=val
    """

    k: Count | None = option(None, "Run", "anchors per cell to propose; empty: as many as are in use")
    out: PathText = option("runs/anchors.png", "Run", "file for the figure")


class Fit(NamedTuple):
    """How well a set of shapes fits the objects."""

    name: str
    size: np.ndarray  # (k, 2) heights and widths
    by_size: np.ndarray  # (N,) best IoU with a shape on the same centre
    in_place: np.ndarray  # (N,) best IoU with an anchor inside the image
    inside: float  # fraction of the anchors that lie inside their image


def main(config):
    """Compare anchors as an `AnchorConfig` says; print tables and draw a picture."""
    with torch.device("meta"):  # shapes only: no memory, no arithmetic
        net = model.build(config.model, min_size=config.min_size, max_size=config.max_size)
    if not isinstance(net.rpn, RegionProposalNetwork):
        raise OptionError(f"--model={config.model} has anchors on several levels, keep the default ones")
    if not (config.anchor_scales and config.anchor_ratios):
        raise OptionError(f"--model={config.model} has no options for its anchors, --anchor-scales and --anchor-ratios")
    stride = net.extractor.stride
    dataset = read_dataset(config)
    img_sizes, map_sizes = zip(*(network_sizes(net, *size) for size in dataset.sizes), strict=True)
    bboxes = [resize_bbox(*args) for args in zip(dataset.bboxes, dataset.sizes, img_sizes, strict=True)]
    size = side_lengths(np.concatenate(bboxes))  # (N, 2)

    k, rng = config.k or len(config.anchor_scales) * len(config.anchor_ratios), np.random.default_rng(config.seed)
    grid = fit_grid(size, k, stride, rng)
    in_use, fits = (config.anchor_scales, config.anchor_ratios), []
    for name, (scales, ratios) in {"in use": in_use, "proposed": grid}.items():
        base = generate_anchor_base(stride, ratios, scales)
        by_size = bbox_iou(centred(size, stride), base).max(1)  # (N,)
        fits.append(Fit(name, side_lengths(base), by_size, *in_place(base, stride, bboxes, img_sizes, map_sizes)))

    print(format_fits(fits))
    print("by size: shapes on the centre of the object; in place: anchors at every cell that lie inside the image\n")
    print(f"in use:   {anchor_options(*in_use)}\nproposed: {anchor_options(*grid)}")
    least = model.defaults(config.model)["rpn_min_size"]
    share = (side_lengths(np.concatenate(dataset.bboxes)).min(1) < least).mean()
    if share > 0:
        print(f"{share:.1%} of the objects have a side below {least:g} pixels: give --rpn-min-size a smaller value")
    plot_fits(size, fits, config.out)
    fields = TrainInputConfig.model_fields.keys() - {"anchor_scales", "anchor_ratios"}
    shown = config.model_dump(include=fields, exclude_defaults=True)
    shown |= {"train_split": config.train_split, "eval_split": config.eval_split}
    print(f"picture: {config.out}\nnext: python train.py train {as_words(shown)} {anchor_options(*grid)}")


def read_dataset(config):
    """Read the split that an `AnchorConfig` names."""
    (dataset,) = data.build(config.data, config, [config.train_split], data.read_class_names(config.classes))
    dataset = dataset if config.use_difficult else dataset.without_difficult()
    check_objects(dataset)
    there = f"{counted(sum(map(len, dataset.bboxes)), 'object')} on {counted(len(dataset), 'image')}"
    print(f"{there} of {config.train_split} in {dataset.root}")
    return dataset


@cache  # many images have the same size
def network_sizes(net, height, width):
    """Return (H', W') of the input of a network on the meta device and (h, w) of its feature map."""
    img, _ = net.prepare(np.zeros((height, width, 3), np.uint8))
    return tuple(img.shape[2:]), tuple(net.extractor(img).shape[2:])


def side_lengths(bbox):
    """Return the heights and widths of (N, 4) boxes: (N, 2) float64."""
    return (bbox[:, 2:] - bbox[:, :2]).astype(np.float64)


def centred(size, stride):
    """Return (N, 2) heights and widths as boxes around the centre of the first cell: (N, 4) float32."""
    return np.concatenate((stride / 2 - size / 2, stride / 2 + size / 2), axis=1).astype(np.float32)


def kmeans(values, k, rng):
    """Return the k centres of (N, D) values, the best of several runs of k-means; fewer if fewer values differ."""
    distinct = np.unique(values, axis=0)
    return distinct if len(distinct) <= k else vq.kmeans(values, k, iter=N_START, rng=rng)[0]


def fit_grid(size, k, stride, rng):
    """Find a grid of scales x ratios that fits (N, 2) heights and widths.

    The scales are the centres of a k-means of the objects' logarithmic scales, the ratios those of their logarithmic
    ratios. Of all S x R = k the grid with the highest mean IoU of an object and its best shape is taken. Values that
    are equal when rounded are merged, as an anchor that comes twice brings nothing.

    Returns:
        Ascending scales, in strides, and ratios, rounded to three digits.
    """
    log_scale, log_ratio = np.log(size.prod(1)) / 2 - np.log(stride), np.log(size[:, 0] / size[:, 1])  # (N,)
    grids = []
    for n_scale in (n for n in range(1, k + 1) if k % n == 0):
        centres = kmeans(log_scale[:, None], n_scale, rng), kmeans(log_ratio[:, None], k // n_scale, rng)
        grids.append([sorted({float(f"{value:.3g}") for value in np.exp(centre).flat}) for centre in centres])
    bbox = centred(size, stride)
    return max(grids, key=lambda grid: bbox_iou(bbox, generate_anchor_base(stride, grid[1], grid[0])).max(1).mean())


def in_place(anchor_base, stride, bboxes, img_sizes, map_sizes):
    """Compare objects with the anchors at every cell that lie inside their image.

    Args:
        anchor_base: (k, 4) anchors of the first cell.
        stride: pixels between cells.
        bboxes: per image (G, 4) boxes.
        img_sizes: per image (H, W).
        map_sizes: per image (h, w) of the feature map.

    Returns:
        (N,) best IoU of each object, 0 if it touches no such anchor, and the fraction of the anchors that lie inside.
    """

    @cache
    def anchors(img_size, map_size):
        anchor = enumerate_shifted_anchor(anchor_base, stride, *map_size)  # (K, 4)
        inside = (anchor[:, :2] >= 0).all(1) & (anchor[:, 2:] <= np.array(img_size)).all(1)  # (K,)
        return anchor[inside], len(anchor)

    best, n_inside, n_anchor = [], 0, 0
    for bbox, *sizes in zip(tqdm(bboxes, unit="img", leave=False), img_sizes, map_sizes, strict=True):
        inside, n = anchors(*sizes)
        best.append(bbox_iou(inside, bbox).max(0, initial=0))  # (G,)
        n_inside, n_anchor = n_inside + len(inside), n_anchor + n
    return np.concatenate(best), n_inside / n_anchor


def format_fits(fits):
    """Format the mean best IoU and the recall of each `Fit` as a table."""
    columns = "mean IoU   recall at 0.5  at 0.7"
    lines = [f"{'':12}{'by size':35}in place", f"{'anchors':12}{columns}    {columns}    anchors inside"]
    for fit in fits:
        cells = [(iou.mean(), (iou >= 0.5).mean(), (iou >= 0.7).mean()) for iou in (fit.by_size, fit.in_place)]
        by_size, placed = ("{:8.3f}   {:13.3f}  {:6.3f}".format(*cell) for cell in cells)
        lines.append(f"{fit.name:12}{by_size}    {placed}    {fit.inside:14.0%}")
    return "\n".join(lines)


def anchor_options(scales, ratios):
    """Format scales and ratios as options of `train.py train`."""
    return as_words({"anchor_scales": scales, "anchor_ratios": ratios})


def plot_fits(size, fits, path):
    """Draw the sizes of (N, 2) objects and of the shapes into a PNG file."""
    with plot_file(path, "sizes in the resized images, pixels", "width", "height") as axes:
        axes.scatter(*size.T[::-1], s=9, color="#2ca02c", alpha=min(0.6, max(0.08, 200 / len(size))), label="objects")
        for fit, (color, marker) in zip(fits, LOOKS, strict=True):
            axes.plot(*fit.size.T[::-1], marker, color=color, fillstyle="none", label=fit.name)
        set_log_scale(axes, "x")
        set_log_scale(axes, "y")


if __name__ == "__main__":
    fire.Fire(command(AnchorConfig, main, (DataError,), defaults=model.defaults))
