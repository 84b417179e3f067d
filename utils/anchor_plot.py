"""The picture of `train.py anchors`: the sizes of boxes and anchors, and recall against IoU.

N: boxes. k: anchors at a cell.
"""
import numpy as np
from matplotlib.figure import Figure

from utils.files import replacing

LOOKS = (  # of the sets in turn: colour, marker, size of the marker
    ("#d62728", "s", 90), ("#1f77b4", "D", 60), ("#222222", "x", 45))
IOU_THRESHS = np.linspace(0.2, 1, 161)


def plot_anchors(size, fits, path):
    """Draws how sets of anchors fit the boxes of a data set into a PNG file, which is there whole or not at all.

    Args:
        size: (N, 2) heights and widths of the boxes, above 0.
        fits: up to three sets; each has `name`, `size` (k, 2), and the best IoU of every box `by_size` (N,) and
            `in_place` (N,).
        path: of the picture.
    """
    figure = Figure(figsize=(13, 6), dpi=100, layout="constrained")
    sizes, recall = figure.subplots(1, 2)
    alpha = min(0.6, max(0.08, 200 / len(size)))
    sizes.scatter(size[:, 1], size[:, 0], s=9, color="#2ca02c", alpha=alpha, linewidths=0, label=f"{len(size)} boxes")
    for fit, (color, marker, area) in zip(fits, LOOKS, strict=False):
        face = {} if marker == "x" else {"facecolors": "none", "edgecolors": color}
        sizes.scatter(fit.size[:, 1], fit.size[:, 0], s=area, marker=marker, linewidths=1.8,
                      label=f"{len(fit.size)} {fit.name}", **(face or {"color": color}))
        for iou, style, words in ((fit.in_place, "-", "in place"), (fit.by_size, "--", "by size")):
            share = (iou[:, None] >= IOU_THRESHS).mean(0)
            recall.plot(IOU_THRESHS, share, style, color=color, linewidth=1.8 if style == "-" else 1.1,
                        label=f"{fit.name}, {words}: mean {iou.mean():.2f}")
    both = np.concatenate([size, *(fit.size for fit in fits)])
    limits = both.min() / 1.3, both.max() * 1.3
    sizes.set(xscale="log", yscale="log", xlim=limits, ylim=limits, aspect="equal", xlabel="width", ylabel="height",
              title="sizes, in pixels after the resize")
    for axis in (sizes.xaxis, sizes.yaxis):
        axis.set_major_formatter("{x:g}")
    recall.set(xlim=(IOU_THRESHS[0], 1), ylim=(0, 1.01), xlabel="IoU",
               ylabel="share of the boxes with such an anchor", title="best possible recall")
    for handle in sizes.legend(loc="upper left", fontsize="small").legend_handles:
        handle.set_alpha(1)  # as on the picture, where many boxes meet
    recall.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=len(fits), fontsize="small", frameon=False)
    for panel in (sizes, recall):
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    with replacing(path) as partial:
        figure.savefig(partial, format="png")
