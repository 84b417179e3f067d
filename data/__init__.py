"""Data sets. `build` opens splits of one; each yields `Sample`s."""

import importlib
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.proposals import add_proposals
from data.validate import DataError


class Sample(NamedTuple):
    """One image and its G objects."""

    img: np.ndarray  # (H, W, 3) uint8 RGB
    bbox: np.ndarray  # (G, 4) float32
    label: np.ndarray  # (G,) int64, 0 ... L - 1
    difficult: np.ndarray  # (G,) bool
    id: str
    rng: np.random.Generator | None = None  # of this sample in this epoch; flip and target creators draw from it
    roi: np.ndarray | None = None  # (R, 4) float32, proposals that come with the data


def build(name: str, options: Any, splits: Sequence[str], classes: Sequence[str] = (), report=None) -> list:
    """Open splits of the data set that data/NAME_dataset.py reads, all checked together.

    Args:
        name: NAME of that file.
        options: object with the options that the reader needs as attributes; `split_ids` (split -> ids), if it has it,
            replaces splits that would be drawn at random, see `n_bytes` of `drawn_splits.drawn_earlier`; with
            `proposals_file`, see `add_proposals`.
        splits: names of the splits; none: the usual ones that are there.
        classes: names of the classes; none: those found in the splits.
        report: `ValidationReport` that receives the errors; without, they are raised.

    Returns:
        One data set per split. It has a length, yields a `Sample` per index (difficult objects included), and has the
        attributes `classes`, `root`, `split`, `notes` (lines to print, on all splits together), and per image `ids`,
        `sizes` (H, W), `bboxes`, `labels`, `difficults`. `without_difficult()` returns it without difficult objects.
        It may have: `metric`, its usual one in `utils.metrics.METRICS`; `drawn`, whether its ids were drawn at random
        (a training keeps them); per image `paths` (files), `areas`, and `image_ids`, and per class `category_ids`, as
        COCO's file has them.

    Raises:
        DataError: no such reader, or an unusable data set: names all offenders.
    """
    known = sorted(path.name.removesuffix("_dataset.py") for path in Path(__file__).parent.glob("*_dataset.py"))
    if name not in known:
        raise DataError(f"--data={name}: data/{name}_dataset.py does not exist; choose one of {', '.join(known)}")
    datasets = importlib.import_module(f"data.{name}_dataset").build(options, splits, classes, report)
    if getattr(options, "proposals_file", None):
        datasets = [add_proposals(dataset, options) for dataset in datasets]
    return datasets


def read_class_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the class names in `classes`, each once: a list of names, or of one file with a name per line."""
    where = f"--classes={','.join(classes)}"
    if len(classes) == 1 and Path(classes[0]).is_file():
        classes = [line for line in read_lines(classes[0]) if line]
        if not classes:
            raise DataError(f"{where} contains no class name: write one per line")
    elif len(classes) == 1 and classes[0].endswith(".txt"):
        raise DataError(f"{where}: the file does not exist")
    return tuple(dict.fromkeys(unicodedata.normalize("NFC", name) for name in classes))


def read_lines(path: str | Path) -> list[str]:
    """Return the lines of a UTF-8 file without surrounding spaces, line ends and byte order mark."""
    try:
        return [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text: save it as UTF-8") from None
