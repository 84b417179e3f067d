"""Draw docs/data_flow.svg, the data flow of a training step and of prediction: `python docs/data_flow.py`.

Three columns: network, targets, losses. Gradients flow back along solid arrows, not along dashed ones. Coordinates are
x, y in pixels; the figure is 900 wide, about the width of a README.
"""

from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 900, 935
NETWORK, TARGETS, LOSSES = 176, 476, 750  # centers of the columns
HALF = 116  # half the width of a box
INK, FAINT = "#1b1f24", "#57606a"
FILLS = {"always": ("#ddebf9", "#1f6feb"), "training": ("#fff0d6", "#bf6a02"), "prediction": ("#efe4fb", "#8250df")}
HEAD = (
    '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">'
    f'<path d="M0 0L10 5L0 10z" fill="{INK}"/></marker></defs>'
)


def text(x, y, words, size=12.5, color=INK, anchor="middle", more=""):
    """One line of text with a white outline, readable across an arrow."""
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" fill="{color}" text-anchor="{anchor}" stroke="#ffffff" '
        f'stroke-width="4" paint-order="stroke" {more}>{escape(words)}</text>'
    )


def box(x, y, name, does, where="", kind="always", height=64):
    """A box centered at x with its upper edge at y: name, description and file."""
    fill, line = FILLS[kind]
    lines = [
        (name, 'font-size="15" font-weight="600"', INK),
        (does, 'font-size="12"', INK),
        (where, 'font-size="11.5" font-family="ui-monospace, Menlo, Consolas, monospace"', FAINT),
    ]
    parts = [
        f'<rect x="{x - HALF}" y="{y}" width="{2 * HALF}" height="{height}" rx="7" fill="{fill}" stroke="{line}" '
        'stroke-width="1.5"/>'
    ]
    parts += [
        f'<text x="{x}" y="{y + 20 + 18 * i}" text-anchor="middle" fill="{color}" {look}>{escape(words)}</text>'
        for i, (words, look, color) in enumerate(line for line in lines if line[0])
    ]
    return "\n".join(parts)


def arrow(*points, gradient=True, kind=None):
    """A line through points (x, y) with a tip at the last; dashed if no gradient flows back."""
    path = "M" + "L".join(f"{x} {y}" for x, y in points)
    dash = "" if gradient else 'stroke-dasharray="6 5" '
    color = FILLS[kind][1] if kind else INK
    return f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.7" {dash}marker-end="url(#tip)"/>'


def network():
    """The left column: from image to detections."""
    x, left = NETWORK, NETWORK - HALF
    return [
        arrow((x, 130), (x, 178), gradient=False, kind="prediction"),
        arrow((x, 242), (x, 290), gradient=False),
        arrow((x, 354), (x, 414)),
        arrow((x, 478), (x, 536), gradient=False),
        arrow((x, 600), (x, 692), gradient=False, kind="prediction"),
        arrow((x, 756), (x, 808), gradient=False, kind="prediction"),
        arrow((x, 384), (left - 24, 384), (left - 24, 724), (left, 724)),
        box(x, 84, "image", "(H, W, 3) uint8 RGB", height=46),
        box(x, 178, "prepare", "to the device, resize, normalise", "preprocess.py"),
        text(x + 8, 271, "(1, 3, H', W') float32", anchor="start"),
        box(x, 290, "extractor", "VGG16 up to conv5_3, stride 16", "vgg16.py"),
        text(x + 8, 376, "feature (1, 512, h, w)", anchor="start"),
        box(x, 414, "RPN", "3x3, then two 1x1 convolutions", "rpn.py"),
        text(x + 8, 499, "rpn_loc, fg_score,", anchor="start"),
        text(x + 8, 516, "anchor (K, 4)", anchor="start"),
        box(x, 536, "ProposalCreator", "decode anchors, clip, rank, NMS", "proposal_creator.py"),
        text(x - 8, 640, "prediction:", color=FILLS["prediction"][1], anchor="end"),
        text(x - 8, 657, "roi (300, 4)", color=FILLS["prediction"][1], anchor="end"),
        box(x, 692, "head", "RoI pooling 7x7, fc6, fc7, two linear", "vgg16.py"),
        text(x + 8, 776, "roi_cls_loc (300, L+1, 4),", color=FILLS["prediction"][1], anchor="start"),
        text(x + 8, 793, "roi_score (300, L+1)", color=FILLS["prediction"][1], anchor="start"),
        box(x, 808, "decode", "locs to boxes, NMS per class", "faster_rcnn.py", "prediction"),
    ]


def targets():
    """The middle column: from ground truth to the targets of RPN and head."""
    x, left, right = TARGETS, TARGETS - HALF, TARGETS + HALF
    gap = NETWORK + HALF  # right edge of the network
    return [
        arrow((x, 130), (x, 178), gradient=False),
        arrow(
            (gap, 107), ((gap + left) / 2, 107), ((gap + left) / 2, 196), (left, 196), gradient=False, kind="training"
        ),
        arrow((left, 224), (gap, 224), gradient=False, kind="training"),
        arrow((x, 242), (x, 290), gradient=False),
        arrow((right - 20, 242), (right - 20, 266), (right + 16, 266), (right + 16, 568), (right, 568), gradient=False),
        arrow((gap, 430), (left - 34, 430), (left - 34, 322), (left, 322), gradient=False),
        arrow((gap, 568), (left, 568), gradient=False),
        arrow((x - 60, 600), (x - 60, 706), (gap, 706), gradient=False),
        box(x, 84, "ground truth", "bbox (G, 4), label (G,)", kind="training", height=46),
        text(x - 8, 270, "resized with the image", anchor="end"),
        box(x, 178, "TrainDataset", "flip image and boxes at random", "transforms.py", "training"),
        box(x, 290, "AnchorTargetCreator", "assign anchors to objects, sample", "anchor_target_creator.py", "training"),
        box(
            x,
            536,
            "ProposalTargetCreator",
            "add ground truth, assign, sample",
            "proposal_target_creator.py",
            "training",
        ),
        text((gap + left) / 2, 560, "roi"),
        text((gap + left) / 2, 590, "(2000, 4)"),
        text(left - 40, 400, "anchor", anchor="end"),
        text(x - 52, 640, "sample_roi (128, 4)", anchor="start"),
    ]


def losses():
    """The right column: the four losses and their sum."""
    x, left, right = LOSSES, LOSSES - HALF, LOSSES + HALF
    gap = NETWORK + HALF
    return [
        arrow((gap, 460), (left, 460)),
        arrow((TARGETS + HALF, 322), (x, 322), (x, 414), gradient=False),
        arrow((gap, 738), (left, 738)),
        arrow((TARGETS + HALF, 588), (x, 588), (x, 692), gradient=False),
        arrow((right, 446), (right + 16, 446), (right + 16, 840), (right, 840)),
        arrow((x, 756), (x, 808)),
        box(x, 414, "rpn_loc + rpn_cls", "smooth L1 (sigma 3); cross entropy", "trainer.py", "training"),
        text(x - 8, 354, "loc (K, 4),", anchor="end"),
        text(x - 8, 371, "label (K,)", anchor="end"),
        text(TARGETS, 452, "rpn_loc (K, 4), rpn_score (K, 2)"),
        box(x, 692, "roi_loc + roi_cls", "smooth L1 (sigma 1); cross entropy", "trainer.py", "training"),
        text(x - 8, 627, "gt_roi_loc (128, 4),", anchor="end"),
        text(x - 8, 644, "gt_roi_label (128,)", anchor="end"),
        text(TARGETS + 5, 730, "roi_cls_loc (128, L+1, 4), roi_score (128, L+1)"),
        box(x, 808, "total", "sum, backward, optimizer step", "trainer.py", "training"),
    ]


def legend():
    """The title, and the legend at the bottom."""
    parts = [text(WIDTH / 2, 34, "One training step, and prediction", 19, more='font-weight="600"')]
    parts += [
        text(x, 66, words, 13, FAINT) for x, words in ((NETWORK, "network"), (TARGETS, "targets"), (LOSSES, "losses"))
    ]
    for x, kind, words in (
        (60, "always", "both"),
        (150, "training", "training only"),
        (290, "prediction", "prediction only"),
    ):
        fill, line = FILLS[kind]
        parts.append(f'<rect x="{x}" y="893" width="16" height="14" rx="3" fill="{fill}" stroke="{line}"/>')
        parts.append(text(x + 23, 905, words, anchor="start"))
    parts += [
        arrow((436, 900), (476, 900)),
        text(484, 905, "gradient flows back", anchor="start"),
        arrow((646, 900), (686, 900), gradient=False),
        text(694, 905, "no gradient", anchor="start"),
        text(
            60,
            926,
            "K anchors, h·w·9; G objects; L classes; h, w: H'/16, W'/16, rounded down. Boxes are "
            "(y_min, x_min, y_max, x_max).",
            12,
            FAINT,
            "start",
        ),
    ]
    return parts


def svg():
    """The figure as the text of an SVG file."""
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    font = "font-family=\"-apple-system, 'Segoe UI', Helvetica, Arial, sans-serif\""
    ground = f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="#ffffff"/>'  # white, also on dark pages
    title = "<title>Data flow of Faster R-CNN: one training step, and prediction</title>"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font} role="img">',
        title,
        HEAD,
        ground,
        *network(),
        *targets(),
        *losses(),
        *legend(),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(svg(), encoding="utf-8")
