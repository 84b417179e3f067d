"""Data sets in COCO's format, written for a test."""

import json

import numpy as np


def to_coco(dataset, gap=3):
    """Convert a data set: image ids from 40, category ids gap, 2 * gap ...; difficult objects become crowds."""
    images, objects = [], []
    for i, (name, (height, width)) in enumerate(zip(dataset.ids, dataset.sizes, strict=True), start=40):
        file_name = dataset.paths[i - 40].name
        images.append({"id": i, "file_name": file_name, "width": width, "height": height})
        columns = dataset.bboxes[i - 40].tolist(), dataset.labels[i - 40].tolist(), dataset.difficults[i - 40].tolist()
        for (y_min, x_min, y_max, x_max), label, difficult in zip(*columns, strict=True):
            bbox = [x_min, y_min, x_max - x_min, y_max - y_min]
            about = {"id": len(objects) + 1, "image_id": i, "category_id": gap * (label + 1), "iscrowd": int(difficult)}
            objects.append(about | {"bbox": bbox, "area": bbox[2] * bbox[3], "segmentation": []})
    categories = [{"id": gap * i, "name": n, "supercategory": ""} for i, n in enumerate(dataset.classes, start=1)]
    return {"images": images, "categories": categories, "annotations": objects}
