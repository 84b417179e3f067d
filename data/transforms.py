"""Random horizontal flips, with one random generator per sample.

G: objects. R: proposals. H, W: sides of the image.
"""

import numpy as np

from data import Sample
from data.validate import DataError


def flip_bbox(bbox: np.ndarray, width: float) -> np.ndarray:
    """Mirror (G, 4) boxes left to right in an image of this width."""
    return np.stack((bbox[:, 0], width - bbox[:, 3], bbox[:, 2], width - bbox[:, 1]), 1)


def random_flip(sample: Sample, rng: np.random.Generator, prob: float) -> Sample:
    """Mirror image, boxes and proposals left to right with probability `prob` (Fast R-CNN 2.3), drawn from `rng`."""
    if rng.random() >= prob:
        return sample
    width = sample.img.shape[1]
    roi = None if sample.roi is None else flip_bbox(sample.roi, width)
    return sample._replace(img=sample.img[:, ::-1].copy(), bbox=flip_bbox(sample.bbox, width), roi=roi)


class TrainDataset:
    """One epoch of a data set: samples that are flipped at random and carry their generator.

    Sample i gets `np.random.default_rng([seed, epoch, i])`, from which the flip is drawn first, so that its random
    numbers depend neither on the order of the images nor on the number of workers and processes.

    Args:
        dataset: data set as `data.build` returns it.
        seed: seed of the run.
        epoch: number of the epoch, from 0.
        flip_prob: probability of a flip.
    """

    def __init__(self, dataset, seed: int, epoch: int, flip_prob: float = 0.5) -> None:
        self.dataset, self.seed, self.epoch, self.flip_prob = dataset, seed, epoch, flip_prob

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng([self.seed, self.epoch, index])
        try:
            return random_flip(self.dataset[index], rng, self.flip_prob)._replace(rng=rng)
        except DataError as error:  # an image that is damaged in the middle
            raise DataError(f"{error}: replace it; python -m tools.check_data finds all such") from None
