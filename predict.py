"""Detect objects in images: `python predict.py IMAGE_OR_DIRECTORY_OR_PATTERN ... --load-path=runs/voc/last.pth`."""

import glob
import json
import os
from collections import Counter
from pathlib import Path

import fire
import torch
from PIL import Image
from tqdm import tqdm

import data
import model
from data.validate import DataError
from data.voc_dataset import IMAGE_SUFFIXES, VOC_CLASSES, read_image
from utils import checkpoint as ckpt
from utils import distributed
from utils.config import OptionError, PredictConfig, command
from utils.vis import contact_sheet, draw_bbox

SHEET, N_SHEET = "contact_sheet", 16  # name of the contact sheet, number of images on it


def main(config, *paths):
    """Detect as a `PredictConfig` says; write pictures, predictions.json and the contact sheet."""
    images = find_images(paths)[: config.limit]
    names = picture_names(images)
    out = Path(config.out)
    for path in images:
        if path.resolve() in {(out / f"{name}.png").resolve() for name in [*names, SHEET]}:
            raise OptionError(f"a picture would replace the image {path}: choose another directory with --out")
    device = distributed.pick_device(config.device)
    dtype = distributed.pick_dtype(config.precision, device)
    if config.deterministic:
        distributed.set_deterministic()
    checkpoint = ckpt.open_checkpoint(config.load_path, config.preprocess)
    classes = ckpt.resolve_class_names(checkpoint, data.read_class_names(config.classes), VOC_CLASSES)
    with ckpt.checkpoint_error(config.load_path):
        net = model.restore(checkpoint)
    net.to(device)
    options = {name: getattr(config, name) for name in ("score_thresh", "nms_thresh", "max_detections")}
    out.mkdir(parents=True, exist_ok=True)
    rows, pictures, unreadable = [], {}, []
    for path, name in zip(tqdm(images, desc="predict", unit="img", dynamic_ncols=True), names, strict=True):
        try:
            img = read_image(path)
        except DataError as error:
            unreadable.append(str(error))
            continue
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            bbox, label, score = (values[0] for values in net.predict([img], **options))
        picture = draw_bbox(img, bbox, label, score, classes)
        with ckpt.replacing(out / f"{name}.png") as partial:
            Image.fromarray(picture).save(partial, compress_level=1)  # a fourth of the time of level 6
        rows += [
            {"image": str(path), "bbox": b.round(2).tolist(), "label": int(i), "name": classes[i], "score": float(s)}
            for b, i, s in zip(bbox.astype(float), label, score.astype(float).round(6), strict=True)
        ]
        if len(pictures) < N_SHEET:
            pictures[name] = picture
    ckpt.write_text(out / "predictions.json", json.dumps(rows, indent=1, ensure_ascii=False))
    if config.coco_json:
        ids = coco_ids(images, names)
        ckpt.write_text(config.coco_json, json.dumps(coco_results(rows, ids)))
    if pictures:
        with ckpt.replacing(out / f"{SHEET}.png") as partial:
            Image.fromarray(contact_sheet(list(pictures.values()), list(pictures))).save(partial)
        print(
            f"{len(rows)} objects in {len(images) - len(unreadable)} images, written to {out}: NAME.png, {SHEET}.png, "
            "predictions.json (boxes are [y_min, x_min, y_max, x_max])"
        )
    if not rows:
        print(f"nothing has a score above {config.score_thresh:g}: try a lower --score-thresh")
    if unreadable:
        raise DataError("\n".join([f"{len(unreadable)} of {len(images)} images cannot be read:", *unreadable]))


def find_images(paths):
    """List the image files that `paths` name, each once: files, those in directories, those that match patterns.

    A pattern may hold *, ?, [abc], and ** for directories at any depth.
    """
    if not paths:
        raise OptionError("name at least one image, directory or pattern: python predict.py IMAGE --load-path=FILE")
    found = []
    for path in map(Path, paths):
        if path.is_file():
            found.append(path)
            continue
        inside = path.iterdir() if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))
        inside = sorted(file for file in inside if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
        if not inside:
            raise DataError(f"{path}: there is no image here ({', '.join(IMAGE_SUFFIXES)})")
        found += inside
    return list(dict.fromkeys(found))


def picture_names(images):
    """Name the picture of each image: its stem; its relative path, joined by "_", where others have that stem."""
    folder = os.path.commonpath([path.absolute().parent for path in images])
    counts = Counter(path.stem.casefold() for path in images) + Counter([SHEET])
    return [
        path.stem if counts[path.stem.casefold()] == 1 else "_".join(path.absolute().relative_to(folder).parts)
        for path in images
    ]


def coco_ids(images, names):
    """Return image path -> COCO's image_id: a number if the names of all pictures are digits, else the name."""
    digits = all(name.isdecimal() for name in names)
    return {str(path): int(name) if digits else name for path, name in zip(images, names, strict=True)}


def coco_results(rows, image_ids):
    """Convert the rows of predictions.json to COCO's format for results; category_id counts the classes from 1."""
    results = []
    for row in rows:
        y_min, x_min, y_max, x_max = row["bbox"]
        bbox = [x_min, y_min, round(x_max - x_min, 2), round(y_max - y_min, 2)]
        image_id, category_id = image_ids[row["image"]], row["label"] + 1
        results.append({"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": row["score"]})
    return results


if __name__ == "__main__":
    errors = (DataError, ckpt.CheckpointError)
    fire.Fire(command(PredictConfig, main, errors, positional=True, defaults=model.defaults))
