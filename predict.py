"""Pictures in, boxes out: `python predict.py IMAGE_OR_FOLDER_OR_PATTERN ... --load-path=runs/voc/last.pth`."""
import glob
import json
import os
from collections import Counter
from pathlib import Path

import fire
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from data.transforms import scale_bbox
from data.voc import SUFFIXES, DataError, read_image
from eval import names_for, open_checkpoint, predict_options
from model import restore
from utils.checkpoint import CheckpointError
from utils.config import OptionError, PredictConfig, command
from utils.device import be_deterministic, pick_device, pick_dtype
from utils.files import replacing
from utils.outputs import check_outputs, write_output, writing
from utils.vis import contact_sheet, draw_bbox, sheet_columns

SHEET = "contact_sheet"
N_SHEET, SHEET_WIDTH = 16, 1600  # images on it; its width in pixels, more or less
UNREADABLE = (DataError, SyntaxError, Image.DecompressionBombError)  # the second: Pillow on some broken PNGs


def find_images(paths):
    """The image files that `paths` name, each once: files, the images in folders, those that patterns match.

    Patterns are for a shell that does not expand them, or because there are too many: *, ?, [abc], and ** for folders
    at any depth. Folders and patterns give their images sorted by name.
    """
    if not paths:
        raise OptionError("name at least one image, folder or pattern: python predict.py IMAGE_OR_FOLDER ... "
                          "--load-path=FILE")
    found = []
    for path in map(Path, paths):
        if path.is_file():
            found.append(path)
            continue
        inside = path.iterdir() if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))
        inside = sorted(file for file in inside if file.suffix.lower() in SUFFIXES and file.is_file())
        if not inside:
            what = "holds" if path.is_dir() else "is neither an image nor a folder, and as a pattern matches"
            raise DataError(f"{path} {what} no image ({', '.join(SUFFIXES[:3])})")
        found += inside
    return list(dict.fromkeys(found))


def picture_names(images):
    """A name for the picture of each image: its stem; with its folders in front, then with its suffix, where others
    are called the same (cam1_a and cam2_a; a.jpg and a.png)."""
    folder = os.path.commonpath([path.parent.absolute() for path in images])
    below = [path.absolute().relative_to(folder) for path in images]
    ways = [[path.stem for path in images], ["_".join(path.with_suffix("").parts) for path in below],
            ["_".join(path.parts) for path in below]]
    counts = [Counter(name.casefold() for name in way) + Counter([SHEET]) for way in ways]
    names = [next((name for name, n in zip(options, counts, strict=True) if n[name.casefold()] == 1), options[-1])
             for options in zip(*ways, strict=True)]
    twice = [name for name, n in Counter(name.casefold() for name in names).items() if n > 1]
    if twice:
        raise OptionError(f"{twice[0]}.png would be the picture of several images: give them different names")
    return names


def coco_rows(rows, image_ids):
    """The detections of predictions.json in COCO's format for results.

    Args:
        rows: the list of predictions.json.
        image_ids: image -> its id.

    Returns:
        [{image_id, category_id, bbox: [x, y, width, height], score}]; category_id counts the classes from 1.
    """
    boxes = [row["bbox"] for row in rows]
    return [{"image_id": image_ids[row["image"]], "category_id": row["label"] + 1,
             "bbox": [x_min, y_min, round(x_max - x_min, 2), round(y_max - y_min, 2)], "score": row["score"]}
            for row, (y_min, x_min, y_max, x_max) in zip(rows, boxes, strict=True)]


def coco_ids(names):
    """The image_id of each name: a number if all names are digits, as COCO's are, else the name (none sorts both)."""
    ids = [int(name) for name in names] if all(name.isdecimal() for name in names) else names
    twice = [image_id for image_id, n in Counter(ids).items() if n > 1]
    if twice:
        raise OptionError(f"several images would have the image_id {twice[0]} in --coco-json: give them other names")
    return ids


def shrink(img, bbox, side):
    """An image and its boxes, made smaller if its longer side has more than `side` pixels."""
    small = Image.fromarray(img)
    small.thumbnail((side, side))
    small = np.array(small)
    return small, scale_bbox(bbox, img.shape[:2], small.shape[:2])


def save_png(path, img):
    """Writes an (H, W, 3) uint8 image; level 1 takes a fourth of the time of Pillow's 6 and 2 to 20 % more bytes."""
    with writing(path), replacing(path) as partial:
        Image.fromarray(img).save(partial, compress_level=1)


def make_folders(config, images, names):
    """Makes the folders of what will be written; refuses to write over an image, and where nothing can be written."""
    out = Path(config.out)
    written = {(out / f"{name}.png").resolve() for name in [*names, SHEET]}
    for path in images:
        if path.resolve() in written:
            raise OptionError(f"a picture would take the place of the image {path}: choose another folder with --out")
    check_outputs(out / "predictions.json", config.coco_json)


def main(config, *paths):
    """Detects as a `PredictConfig` says; writes pictures, predictions.json and the contact sheet."""
    images = find_images(paths)[:config.limit]
    names = picture_names(images)
    image_ids = dict(zip(map(str, images), coco_ids(names), strict=True)) if config.coco_json else None
    device = pick_device(config.device)
    dtype = pick_dtype(config.precision, device)
    if config.deterministic:
        be_deterministic()
    checkpoint = open_checkpoint(config.load_path, config.preprocess)
    classes = names_for(checkpoint, config.classes)
    model = restore(checkpoint).to(device)
    make_folders(config, images, names)
    out, rows, sheet, unreadable = Path(config.out), [], {}, []
    side = SHEET_WIDTH // sheet_columns(min(N_SHEET, len(images)))
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        for path, name in zip(tqdm(images, desc="predict", unit="img", dynamic_ncols=True), names, strict=True):
            try:
                img = read_image(path)
            except UNREADABLE:
                unreadable.append(str(path))
                continue
            bbox, label, score = (values[0] for values in model.predict([img], **predict_options(config)))
            save_png(out / f"{name}.png", draw_bbox(img, bbox, label, score, classes))
            rows += [{"image": str(path), "bbox": [round(float(x), 2) for x in b], "label": int(i), "name": classes[i],
                      "score": round(float(s), 6)} for b, i, s in zip(bbox, label, score, strict=True)]
            if len(sheet) < N_SHEET:
                sheet[name] = draw_bbox(*shrink(img, bbox, side), label, score, classes)
    write_output(out / "predictions.json", json.dumps(rows, indent=1, ensure_ascii=False))
    if config.coco_json:
        write_output(config.coco_json, json.dumps(coco_rows(rows, image_ids)))
    if sheet:
        save_png(out / f"{SHEET}.png", contact_sheet(list(sheet.values()), list(sheet)))
    report(config, rows, len(images), unreadable)


def report(config, rows, n_image, unreadable):
    """Prints what was found and where it is; raises DataError if images could not be read."""
    if config.coco_json:
        print(f"COCO results, boxes are [x, y, width, height]: {config.coco_json}")
    n_read = n_image - len(unreadable)
    hint = "" if rows else f", or try --score-thresh={config.score_thresh / 2:g}"
    if n_read:
        print(f"{len(rows)} objects in {n_read} images; pictures and predictions.json, boxes are [y_min, x_min, y_max, "
              f"x_max], are in {config.out}: look at {Path(config.out) / SHEET}.png first{hint}")
    if unreadable:
        raise DataError(f"{len(unreadable)} of {n_image} images cannot be read and are left out: "
                        f"{', '.join(unreadable)}")


if __name__ == "__main__":
    fire.Fire(command(PredictConfig, main, (DataError, CheckpointError), positional=True))
