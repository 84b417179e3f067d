"""Data sets in COCO's format, written for a test."""

import json


def to_coco(dataset, gap=3):
    """Convert a data set: image ids from 40, category ids gap, 2 * gap ...; difficult objects become crowds."""
    images, objects = [], []
    for i, (path, (height, width)) in enumerate(zip(dataset.paths, dataset.sizes, strict=True)):
        images.append({"id": 40 + i, "file_name": path.name, "width": width, "height": height})
        columns = (getattr(dataset, name)[i].tolist() for name in ("bboxes", "labels", "difficults"))
        for (y_min, x_min, y_max, x_max), label, difficult in zip(*columns, strict=True):
            bbox = [x_min, y_min, x_max - x_min, y_max - y_min]
            about = {"id": len(objects) + 1, "image_id": 40 + i, "category_id": gap * (label + 1), "bbox": bbox}
            objects.append(about | {"iscrowd": int(difficult), "area": bbox[2] * bbox[3], "segmentation": []})
    categories = [{"id": gap * i, "name": n, "supercategory": ""} for i, n in enumerate(dataset.classes, start=1)]
    return {"images": images, "categories": categories, "annotations": objects}


def write_coco(folder, train, val):
    """Write two data sets in the VOC layout as COCO files, for which `folder` exists; return the options they need."""
    options = {}
    for dataset, prefix in ((train, "coco"), (val, "coco_eval")):
        path = folder / f"{prefix}.json"
        path.write_text(json.dumps(to_coco(dataset)))
        options |= {f"{prefix}_images": str(dataset.root / "JPEGImages"), f"{prefix}_annotations": str(path)}
    return options
