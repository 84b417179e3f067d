"""Pictures in, boxes out: `python predict.py IMAGE_OR_FOLDER ... --load-path=runs/voc/last.pth`."""
import json
from collections import Counter
from pathlib import Path

import fire
import torch
from PIL import Image
from tqdm import tqdm

from data.voc import SUFFIXES, DataError, read_image
from eval import names_for, open_checkpoint, predict_options
from model import restore
from utils.checkpoint import CheckpointError
from utils.config import OptionError, PredictConfig, command
from utils.device import be_deterministic, pick_device, pick_dtype
from utils.files import replacing, write_text
from utils.vis import draw_bbox


def find_images(paths):
    """The image files that `paths` name: files, and the images in folders, sorted by name."""
    if not paths:
        raise OptionError("name at least one image or folder: python predict.py IMAGE_OR_FOLDER ... --load-path=FILE")
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
            if not inside:
                raise DataError(f"{path} holds no image ({', '.join(SUFFIXES[:3])})")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"{path} is neither an image nor a folder")
    twice = [stem for stem, n in Counter(path.stem for path in found).items() if n > 1]
    if twice:
        raise OptionError(f"several images are called {twice[0]!r}, and {twice[0]}.png can be written only once: "
                          "give them different names, or call once a folder")
    return found


def main(config, *paths):
    """Detects as a `PredictConfig` says; writes pictures and predictions.json."""
    images = find_images(paths)[:config.limit]
    device = pick_device(config.device)
    dtype = pick_dtype(config.precision, device)
    if config.deterministic:
        be_deterministic()
    checkpoint = open_checkpoint(config.load_path, config.preprocess)
    names = names_for(checkpoint, config.classes)
    model = restore(checkpoint).to(device)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        for path in tqdm(images, desc="predict", unit="img"):
            img = read_image(path)
            bbox, label, score = (values[0] for values in model.predict([img], **predict_options(config)))
            with replacing(out / f"{path.stem}.png") as partial:
                Image.fromarray(draw_bbox(img, bbox, label, score, names)).save(partial)
            rows += [{"image": str(path), "bbox": [round(float(x), 2) for x in b], "label": int(i), "name": names[i],
                      "score": round(float(s), 4)} for b, i, s in zip(bbox, label, score, strict=True)]
    write_text(out / "predictions.json", json.dumps(rows, indent=1, ensure_ascii=False))
    print(f"{len(rows)} objects in {len(images)} images, boxes are [y_min, x_min, y_max, x_max]: "
          f"pictures and predictions.json are in {out}")


if __name__ == "__main__":
    fire.Fire(command(PredictConfig, main, (DataError, CheckpointError), positional=True))
