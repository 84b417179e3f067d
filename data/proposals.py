"""Proposals that come with the data, for Fast R-CNN: from a file, or windows that slide over the image.

R: proposals of one image.
"""

import itertools
from pathlib import Path

import numpy as np

from data.validate import DataError

WINDOWS = "sliding-windows"  # the other value of --proposals-file
STEP = 16  # pixels of the resized image between windows, the stride of VGG16 and ZF
# of the options that shape the windows; paper 3.3, 4.1
DEFAULTS = {"min_size": 600, "max_size": 1000, "anchor_scales": (8, 16, 32), "anchor_ratios": (0.5, 1, 2)}


class WithProposals:
    """A data set as `data.build` returns it, whose samples carry their proposals as `Sample.roi`.

    Args:
        dataset: the data set.
        rois: per image (R, 4) float32 boxes in its pixels; None: `sliding_windows`.
        windows: their arguments.
    """

    def __init__(self, dataset, rois, **windows):
        self.__dict__.update(vars(dataset))  # classes, ids, sizes, bboxes ...
        self.dataset, self.rois, self.windows = dataset, rois, windows

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        roi = self.rois[index] if self.rois else sliding_windows(*self.sizes[index], **self.windows)
        return self.dataset[index]._replace(roi=roi)

    def without_difficult(self):
        """Return the data set without difficult objects, with the same proposals."""
        return WithProposals(self.dataset.without_difficult(), self.rois, **self.windows)


def add_proposals(dataset, options):
    """Give the images of a data set the proposals that `options.proposals_file` names: a file, or `WINDOWS`.

    Raises:
        DataError: the file cannot be read, or lacks images of the data set.
    """
    path = options.proposals_file
    if path == WINDOWS:
        windows = {name: getattr(options, name, None) or default for name, default in DEFAULTS.items()}
        return WithProposals(dataset, None, **windows)
    rois = read_proposals(path)
    if missing := [image_id for image_id in dataset.ids if image_id not in rois]:
        what = f"{path} has no proposals for {len(missing)} of the {len(dataset)} images of {dataset.split}"
        raise DataError(f"{what}, e.g. {missing[0]}: see python -m tools.make_proposals --help")
    return WithProposals(dataset, [rois[image_id] for image_id in dataset.ids])


def write_proposals(path, rois):
    """Write proposals, a dict id -> (R, 4) boxes, best first, to the .npz file `path`."""
    roi = np.concatenate([*rois.values(), np.zeros((0, 4))]).astype(np.float32)
    with open(path, "wb") as file:  # whatever its suffix is
        np.savez(file, ids=np.array([*rois], str), counts=np.array([*map(len, rois.values())], int), roi=roi)


def read_proposals(path):
    """Read a file of `write_proposals`: "ids" (N,), "counts" (N,), and "roi" (sum of counts, 4), image after image.

    Raises:
        DataError: it is missing, damaged, or holds something else.
    """
    if not Path(path).is_file():
        raise DataError(f"--proposals-file={path} is neither a file nor {WINDOWS}: python -m tools.make_proposals")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            ids, counts, roi = (arrays[name] for name in ("ids", "counts", "roi"))
        if roi.shape != (counts.sum(), 4) or len(ids) != len(counts) or not (roi[:, 2:] >= roi[:, :2]).all():
            raise ValueError("the boxes must be (sum of counts, 4): y_min, x_min, y_max, x_max")
        parts = np.split(roi.astype(np.float32), counts.cumsum()[:-1])
    except Exception as error:  # a damaged file makes NumPy raise errors of many types
        raise DataError(f"{path} is not a file of python -m tools.make_proposals: {error}") from None
    return dict(zip(ids.tolist(), parts, strict=True))


def sliding_windows(height, width, min_size, max_size, anchor_scales, anchor_ratios):
    """Return windows of every scale and ratio, every 16 pixels of the resized image (paper 4.1, table 10).

    They are the RPN's anchors, clipped to the image.

    Args:
        height, width: of the image.
        min_size, max_size: of the network's input, which say how the image is resized.
        anchor_scales: sides of square windows, in units of 16 pixels.
        anchor_ratios: height / width.

    Returns:
        (R, 4) float32 boxes in pixels of the image.
    """
    scale = min(min_size / min(height, width), max_size / max(height, width))
    half = [(s * r**0.5 / 2, s / r**0.5 / 2) for r, s in itertools.product(anchor_ratios, anchor_scales)]
    half = np.array(half) * STEP / scale  # (shapes, 2)
    y, x = (np.arange(STEP / 2, side * scale, STEP) / scale for side in (height, width))  # centres
    centre = np.stack(np.meshgrid(y, x, indexing="ij"), -1)[:, :, None]  # (rows, columns, 1, 2)
    roi = np.concatenate((centre - half, centre + half), -1).reshape(-1, 4)  # (R, 4)
    return roi.clip(0, (height, width) * 2).astype(np.float32)
