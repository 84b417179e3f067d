"""Splits drawn at random where nothing says what the splits are, and kept by the run that drew them."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data.validate import ValidationReport


def ids_below(root: Path, split_ids: dict, every: list[str]) -> dict:
    """Return split -> those of `split_ids` that lie in the folder `root`, without what they start with.

    Ids of several folders start with the names of these, which may be others now: they lie in the folder that has most
    of `every`; of equal ones, in `root` itself, else in that named as `root`, else in none.
    """
    names, starts = {*every}, Counter()
    for image_id in {image_id for ids in split_ids.values() for image_id in ids}:
        for i in [0, *(match.end() for match in re.finditer("/", image_id))]:
            starts[image_id[:i]] += image_id[i:] in names
    most = max(starts.values(), default=0)
    best = [start for start, n in starts.items() if n == most > 0]
    best = [""] if "" in best else [start for start in best if start in (f"{root.name}/", f"{root}/")] or best
    if len(best) != 1:
        return {}
    return {s: [i.removeprefix(best[0]) for i in ids if i.startswith(best[0])] for s, ids in split_ids.items()}


def drawn_earlier(
    root: Path,
    splits: Sequence[str],
    options: dict,
    every: list[str],
    find: Callable[[str], list[Path]],
    report: ValidationReport,
    where: str = "",
) -> dict[str, list[str]]:
    """Return split -> ids that were drawn earlier, of those of `splits` that were drawn from these data.

    They are other data if most of the drawn ids are gone, or if most images of these ids have none of the drawn sizes.

    Args:
        root: folder of the data.
        splits: names of the splits.
        options: `split_ids`, split -> ids of that drawing, or None; `n_bytes`, sizes of the files of its images; none:
            not known.
        every: all ids of these data.
        find: id -> files of its image.
        report: receives notes of what is used, and of ids that are new, with `where` behind.
    """
    split_ids, known = ids_below(root, options["split_ids"] or {}, every), {*options["n_bytes"]}
    here, drawn = {*every}, {*()}.union(*split_ids.values())
    new, old = here - drawn, here & drawn
    changed = [i for i in old if known and known.isdisjoint(file.stat().st_size for file in find(i))]
    if 2 * len(old) <= len(drawn) or 2 * len(changed) > len(old):
        return {}
    asked = {}
    for split in splits:  # train is the part called trainval, if that is what was drawn
        alike = [split] if split in split_ids else [s for s in split_ids if part_of(s) == part_of(split) != 0]
        if len(alike) == 1:
            asked[split] = split_ids[alike[0]]
            report.note("kept", f"{split} {len(asked[split])} of {len(every)} images{where}")
    if new and asked:
        report.note("new", f"{len(new)} of {len(every)}{where}, such as {min(new)}")
    return asked


def draw(splits: Sequence[str], options: dict, every: list[str], report: ValidationReport, where: str = "") -> dict:
    """Return split -> ids that are drawn, and note it; the part held out is that of val and test, or the last.

    Of `options`, `val_ratio` is the fraction held out, of 0 each split has all images, and `seed` that of the drawing.
    A single split is one of two parts if its name says which; one that is named twice has all images.
    """
    ranks, val_ratio = {split: part_of(split) for split in splits}, options["val_ratio"]
    order = np.random.default_rng(options["seed"]).permutation(len(every))
    n_val = max(val_ratio > 0, round(val_ratio * len(every)))
    parts = [order[n_val:], order[:n_val]]
    if len(ranks) == 1:
        everything = val_ratio == 0 or len(splits) > 1
        parts = [order if everything else (parts[0], (), parts[1])[ranks[splits[0]] + 1]]
    drawn = {}
    for split, part in zip(sorted(ranks, key=ranks.get), parts, strict=False):
        drawn[split] = [every[i] for i in sorted(part)]
        if len(part) < len(every):
            report.note("drawn", f"{split} {len(part)} of {len(every)} images{where}")
    return drawn


def part_of(split: str) -> int:
    """Return whether a split of this name is held out, 1, or trained on, -1; 0 if the name does not say."""
    return split.lower().startswith(("val", "test")) - split.lower().startswith("train")
