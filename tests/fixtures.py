"""A tiny data set and a narrow network, for scripts and tests that train many steps or many times."""
import numpy as np
from PIL import Image

import model.vgg16

NARROW = (8, 8, "M", 16, 16, "M", 16, 16, 16, "M", 16, 16, 16, "M", 16, 16, 512)  # channels of VGG16's convolutions
SIZES = ((48, 64), (64, 48), (40, 70), (56, 56))
OPTIONS = {
    "data": "voc", "pretrained": "none", "head_width": "16", "min_size": "48", "max_size": "64",
    "anchor_scales": "1,2", "rpn_min_size": "2", "n_train_pre_nms": "200", "n_train_post_nms": "50",
    "n_test_pre_nms": "100", "n_test_post_nms": "20", "visdom": "off", "device": "cpu", "dropout": "0.5",
    "precision": "fp32", "plot_every": "2"}


def write_tiny(root, splits):
    """Writes a data set in the VOC layout, `splits` is name -> number of images; one bright square on each."""
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for split, n_image in splits.items():
        ids = [f"{split}{i:05d}" for i in range(n_image)]
        (root / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(ids))
        for i, image_id in enumerate(ids):
            height, width = SIZES[i % len(SIZES)]
            img = rng.integers(80, 120, (height, width, 3), np.uint8)
            side = int(rng.integers(14, 30))
            y, x = int(rng.integers(0, height - side)), int(rng.integers(0, width - side))
            img[y:y + side, x:x + side] = (240, 60, 20)
            (root / "Annotations" / f"{image_id}.xml").write_text(
                f"<annotation><object><name>square</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
                f"<xmax>{x + side}</xmax><ymax>{y + side}</ymax></bndbox></object></annotation>")
            Image.fromarray(img).save(root / "JPEGImages" / f"{image_id}.png")
    return root


def narrow_vgg16():
    """From here on VGG16 has as many layers as ever, but few channels: a step takes hundredths of a second."""
    model.vgg16.LAYERS = NARROW
