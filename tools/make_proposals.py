"""Compute proposals without a network: `python -m tools.make_proposals --method=selective-search`.

Selective search (Uijlings et al. 2013) and edge boxes (Zitnick and Dollar 2014) are OpenCV's, from the package
opencv-contrib-python-headless. The file is that of `data.proposals.write_proposals`, for --proposals-file.
"""

import os
from functools import partial
from typing import Literal

import fire
import numpy as np
from tqdm.contrib.concurrent import thread_map

import data
from data.proposals import write_proposals
from data.validate import DataError
from data.voc_layout import pair_splits
from utils.checkpoint import check_writable, replacing
from utils.command import command
from utils.config import Count, DatasetConfig, Names, OptionError, PathText, WorkerConfig, as_words, counted, option

WIDTH = 500  # pixels to which selective search resizes an image (R-CNN, arXiv 1311.2524, 4.2)


class ProposalsConfig(WorkerConfig, DatasetConfig):
    """python -m tools.make_proposals: Compute proposals of images by selective search or edge boxes.

    example: python -m tools.make_proposals --voc-data-dir=MYDATA --splits=train,val --out=runs/search.npz
    """

    method: Literal["selective-search", "edge-boxes"] = option("selective-search", "Proposals", "as the names say")
    n_proposals: Count = option(2000, "Proposals", "best proposals to keep per image", "paper 4.1")
    edge_model: PathText | None = option(None, "Proposals", "edge-boxes: OpenCV's model of structured edges, a file")
    splits: Names = option((), "Data", "splits a,b; empty: those of train, val, trainval and test that exist, else all")
    out: PathText = option("runs/proposals.npz", "Run", "file to write")


def main(config):
    """Compute proposals as a `ProposalsConfig` says, images in parallel, and write them."""
    find = find_method(config)
    check_writable(config.out)
    datasets = data.build(config.data, config, config.splits, data.read_class_names(config.classes))
    images = {}
    for dataset in datasets:
        for i, image_id in enumerate(dataset.ids):
            other, _ = images.setdefault(image_id, (dataset, i))
            if other.root != dataset.root:
                raise DataError(f"{image_id} is an image in {other.root} and in {dataset.root}: rename one of them")
    n_thread = config.num_workers or os.cpu_count()  # OpenCV computes without Python's lock

    def propose(image):
        return find(image[0][image[1]].img)[: config.n_proposals]

    rois = thread_map(propose, images.values(), max_workers=n_thread, unit="img", leave=False)
    with replacing(config.out) as partial_file:
        write_proposals(partial_file, dict(zip(images, rois, strict=True)))
    mean = np.mean([len(roi) for roi in rois])
    print(f"{counted(len(rois), 'image')}, {mean:.0f} proposals each on average, written to {config.out}")
    options = config.dataset_options() | pair_splits(datasets) | {"proposals_file": config.out}
    print(f"next: python train.py train {as_words(options)}")


def find_method(config):
    """Return the function from an (H, W, 3) uint8 RGB image to (R, 4) float boxes, best first.

    Raises:
        OptionError: OpenCV or the model of edge boxes is missing.
    """
    try:
        from cv2 import ximgproc
    except ImportError:
        raise OptionError("OpenCV is missing: pip install opencv-contrib-python-headless") from None
    if config.method == "selective-search":
        return selective_search
    if not config.edge_model or not os.path.isfile(config.edge_model):
        raise OptionError("--method=edge-boxes needs the file of OpenCV's model of structured edges: --edge-model=FILE")
    return partial(edge_boxes, model=ximgproc.createStructuredEdgeDetection(config.edge_model), n=config.n_proposals)


def selective_search(img):
    """Search in the image at 500 pixels of width, "fast" mode (paper 4.1); part of the ranking is random."""
    import cv2

    scale = WIDTH / img.shape[1]
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(cv2.resize(img[:, :, ::-1], (WIDTH, max(round(img.shape[0] * scale), 1))))
    search.switchToSelectiveSearchFast()
    return to_bbox(search.process()) / scale  # of the resized image


def edge_boxes(img, model, n):
    """Find `n` boxes in which whole contours lie; `model` detects the edges."""
    import cv2

    edges = model.detectEdges(img.astype(np.float32) / 255)  # (H, W), from RGB
    angle = model.computeOrientation(edges)
    boxes, _ = cv2.ximgproc.createEdgeBoxes(maxBoxes=n).getBoundingBoxes(model.edgesNms(edges, angle), angle)
    return to_bbox(boxes)


def to_bbox(rect):
    """Convert (R, 4) x, y, width, height to (R, 4) y_min, x_min, y_max, x_max."""
    x, y, width, height = np.asarray(rect, np.float64).reshape(-1, 4).T
    return np.stack((y, x, y + height, x + width), 1)


if __name__ == "__main__":
    fire.Fire(command(ProposalsConfig, main, (DataError,)))
