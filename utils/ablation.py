"""What NMS, scores and regression of the RPN are worth at test time (paper 4.1, table 2).

A detector classifies proposals from which something is left out. In the paper it is a Fast R-CNN that was trained on
selective search; the detector of a joint checkpoint was trained on the very proposals of its RPN.

K: anchors. R: proposals. D: detections.
"""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch

from utils.coco_eval import N_PRE_NMS, with_settings
from utils.metrics import format_value, read_samples, score
from utils.vis import plot_file, set_log_scale

# what is left out -> number of proposals -> mAP in table 2 (ZF, VOC2007), None where it has no such row
PAPER = {
    "RPN": {50: None, 100: 0.551, 300: 0.568, 1000: 0.563, 2000: None, 6000: None},
    "no NMS": {6000: 0.552},
    "no cls": {100: 0.446, 300: 0.514, 1000: 0.558},
    "no reg": {300: 0.521, 1000: 0.513},
}
REFERENCE = ("RPN", 300)  # what the other rows are compared with
N_ROI = 1000  # RoIs that the head takes at once: memory


class Row(NamedTuple):
    """One row of the table."""

    name: str  # what is left out, a key of `PAPER`
    n: int  # proposals per image, at most
    mean: float  # proposals per image
    map: float | None
    paper: float | None  # the paper's mAP


def propose(rpn, output, without, n, img_size, scale, rng):
    """Create the proposals of one image without a part of the RPN.

    Args:
        rpn: the network.
        output: its `RPNOutput`.
        without: "no NMS"; "no cls": n random boxes, not ranked and so without NMS; "no reg": the anchors; or "RPN".
        n: proposals, at most, of 12000 before NMS.
        img_size: (H', W') of the network's input.
        scale: its resize factor.
        rng: np.random.Generator for "no cls".

    Returns:
        (R, 4) proposals, best first.
    """
    loc = output.rpn_loc * (without != "no reg")  # (K, 4)
    key = rng.random(len(loc), dtype=np.float32)
    fg_score = output.fg_score.new_tensor(key) if without == "no cls" else output.fg_score  # (K,)
    nms = {"nms_thresh": 1.0} if without in ("no NMS", "no cls") else {}  # no IoU is above 1
    rpn = with_settings(rpn, n_test_pre_nms=N_PRE_NMS, n_test_post_nms=n, **nms)
    return rpn.propose(loc, fg_score, output.anchor, img_size, scale, train=False)


@torch.no_grad()
def ablate(proposer, detector, dataset, metric, dtype=None, num_workers=None, limit=None, seed=0, **thresholds):
    """Evaluate a detector on the proposals of an RPN from which something is left out.

    Args:
        proposer: `FasterRCNN` whose RPN proposes.
        detector: `FasterRCNN` whose head classifies; it may be the same.
        seed: of the random order of "no cls".
        thresholds: score_thresh, nms_thresh and max_detections of `FasterRCNN.predict`.
        the others: see `evaluate`.

    Returns:
        List of `Row`, in the order of the paper's table.
    """
    found = {(name, n): [] for name, numbers in PAPER.items() for n in numbers}
    n_roi, device, max_detections = dict.fromkeys(found, 0), detector.device, thresholds.pop("max_detections", None)
    proposer.eval()
    detector.eval()
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        for i, sample in enumerate(read_samples(dataset, limit, num_workers, device)):
            (seen, scale), (x, _) = (net.prepare(sample.img) for net in (proposer, detector))
            feature = proposer.extractor(seen)
            output = proposer.rpn(feature, seen.shape[2:], scale, train=False)
            feature = feature if detector is proposer else detector.extractor(x)
            ratio = [there / here for there, here in zip(x.shape[2:], seen.shape[2:], strict=True)]
            for name, numbers in PAPER.items():
                rng = np.random.default_rng([seed, i])
                roi = propose(proposer.rpn, output, name, max(numbers), seen.shape[2:], scale, rng)
                roi = roi * roi.new_tensor(ratio * 2)  # (R, 4) in the input of the detector
                parts = [detector.head(feature, part) for part in roi.split(N_ROI)]
                loc, logit = map(torch.cat, zip(*parts, strict=True))  # (R, L + 1, 4), (R, L + 1)
                for n in numbers:  # the first n are those that n proposals would be
                    rpn, first = SimpleNamespace(roi=roi[:n]), {"roi_cls_loc": loc[:n], "roi_score": logit[:n]}
                    sizes = x.shape[2:], sample.img.shape[:2]
                    detection = detector.decode(SimpleNamespace(rpn=rpn, **first), *sizes, **thresholds)
                    found[name, n].append([values[:max_detections].cpu().numpy() for values in detection])
                    n_roi[name, n] += len(rpn.roi)
    rows = []
    for (name, n), images in found.items():
        evaluation = score([list(column) for column in zip(*images, strict=True)], dataset, metric)
        rows.append(Row(name, n, n_roi[name, n] / len(images), evaluation.map, PAPER[name][n]))
    return rows


def direction(value, reference):
    """Say in a word how a mAP compares with that of the reference; "" if one of them is None."""
    if value is None or reference is None:
        return ""
    return "equal" if value == reference else "higher" if value > reference else "lower"


def format_ablation(rows, detector=None) -> str:
    """Format the `Row`s of `ablate` as a table that compares each with `REFERENCE`, here and in the paper.

    `detector` is the file of the detector, None if it is that of the proposals.
    """
    who = f"{detector}, apart from them" if detector else "the detector that was trained together with them"
    reference = next(row for row in rows if (row.name, row.n) == REFERENCE)
    lines = [f"proposals without NMS, scores (cls) or regression (reg), classified by {who}"]
    lines += [f"compared with {reference.n} of the RPN; paper: table 2, by a Fast R-CNN trained on selective search"]
    lines += ["           at most  mean     mAP  compared   paper: mAP  compared"]
    for row in rows:
        here, there = direction(row.map, reference.map), direction(row.paper, reference.paper)
        agrees = ("agrees" if here == there else "differs") if here and there and row is not reference else ""
        text = f"{row.name:9}  {row.n:7d}  {row.mean:4.0f}  {format_value(row.map)}  {here:8}"
        paper = "" if row.paper is None else f"{row.paper:.3f}"  # as many digits as it gives
        lines.append(f"{text}  {paper:>10}  {there:8}  {agrees}".rstrip())
    return "\n".join(lines)


def plot_ablation(rows, path) -> None:
    """Plot the mAP of `Row`s against the number of proposals, one line per part that is left out, into a PNG file."""
    with plot_file(path, "proposals without a part of the RPN", "proposals per image", "mAP") as axes:
        for name in PAPER:
            points = [(max(row.mean, 1), row.map or 0) for row in rows if row.name == name]
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
        axes.set(ylim=(0, None))
        set_log_scale(axes, "x")
