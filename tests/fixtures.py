"""A small data set and a narrow network, for scripts and tests that train many steps or many times."""

import numpy as np
from PIL import Image

import model.vgg16

NARROW = (8, 8, "M", 16, 16, "M", 16, 16, 16, "M", 16, 16, 16, "M", 16, 16, 512)  # channels of VGG16's convolutions
SIZES = ((48, 64), (64, 48), (40, 70), (56, 56))
COLORS = {"bar": (240, 60, 20), "box": (20, 60, 240)}
OPTIONS = {
    "data": "voc",
    "voc_data_dir": "voc",
    "train_split": "train",
    "eval_split": "val",
    "pretrained": "none",
    "head_width": "16",
    "dropout": "0.5",
    "min_size": "48",
    "max_size": "64",
    "anchor_scales": "1,2",
    "rpn_min_size": "2",
    "n_train_pre_nms": "200",
    "n_train_post_nms": "50",
    "n_test_pre_nms": "100",
    "n_test_post_nms": "20",
    "device": "cpu",
    "precision": "fp32",
    "plot_every": "2",
    "visdom": "off",
}


def write_voc(root, splits):
    """Write a data set in the VOC layout: a wide and a square object per image, none in the last image of a split.

    Args:
        root: folder.
        splits: name -> number of images.
    """
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for split, n_image in splits.items():
        ids = [f"{split}{i:05d}" for i in range(n_image)]
        (root / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(ids))
        for i, image_id in enumerate(ids):
            img = rng.integers(80, 120, (*SIZES[i % len(SIZES)], 3), np.uint8)
            objects = ""
            for name, sides in {} if i == n_image - 1 else {"bar": (8, 30), "box": (18, 18)}.items():
                y, x = (int(rng.integers(0, whole - side)) for whole, side in zip(img.shape, sides, strict=False))
                height, width = sides
                img[y : y + height, x : x + width] = COLORS[name]
                objects += (
                    f"<object><name>{name}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
                    f"<xmax>{x + width}</xmax><ymax>{y + height}</ymax></bndbox></object>"
                )
            (root / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>{objects}</annotation>")
            Image.fromarray(img).save(root / "JPEGImages" / f"{image_id}.png")
    return root


def narrow_vgg16():
    """Give VGG16 few channels from here on, in as many layers: a step takes hundredths of a second."""
    model.vgg16.LAYERS = NARROW
