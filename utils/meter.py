"""Means over the last steps of a training run: losses, how often RPN and head were right, proposals, speed.

Shapes: R proposals, N anchors or RoIs of one image. "Positive" is an anchor or RoI whose label is an object,
"negative" one whose label is the background; those that do not count in the losses (label -1) do not count here.
"""

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

# figure -> what was looked at, which place of its counts to divide by which
_RATES = {
    "rpn_recall_pos": ("rpn", 1, 0),
    "rpn_recall_neg": ("rpn", 3, 2),
    "roi_acc_fg": ("roi", 1, 0),
    "roi_acc_bg": ("roi", 3, 2),
}


def _count(score: Tensor, label: Tensor) -> Tensor:
    """(4,) positives, those given their own class by (N, classes) `score`, negatives, those given 0."""
    right = score.argmax(1) == label  # (N,)
    positive, negative = label > 0, label == 0
    return torch.stack((positive, positive & right, negative, negative & right)).sum(1)


class Meter:
    """Gathers figures step by step; nothing leaves the device, and nothing is waited for, before they are read.

    `watch` is for the trainer, which calls it for each image; `add` follows each step.
    """

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Forget everything, and start the clock."""
        self._losses, self._counts = [], {"rpn": 0, "roi": 0}
        self._n_watched = self._n_proposal = self._n_image = 0
        self._since = time.monotonic()

    def watch(self, name: str, *seen: Tensor) -> None:
        """Take note of one image: "proposal" and (R, 4) boxes, or "rpn" or "roi", (N, classes) logits, (N,) labels."""
        if name == "proposal":
            self._n_watched += 1
            self._n_proposal += len(seen[0])
        else:
            self._counts[name] = self._counts[name] + _count(*seen)

    def add(self, losses: NamedTuple, n_image: int) -> None:
        """Add the mean losses of one step on `n_image` images."""
        self._losses.append(losses)
        self._n_image += n_image

    def read(self, add_up: Callable[[Iterable[Tensor]], None] = lambda tensors: None) -> dict[str, float]:
        """The figures since the last call by name, and a new start.

        They are the mean losses, `images_per_second`; of the positive anchors and of the negative ones the share
        that the RPN told right, `rpn_recall_pos` and `rpn_recall_neg`; the same of the head, `roi_acc_fg` (right is
        the object's own class) and `roi_acc_bg`; an image's mean `n_proposal`, `n_pos_anchor` and `n_pos_roi`. NaN
        where there was nothing to divide by. `add_up` replaces tensors by their sums over several processes.
        """
        loss = torch.stack([torch.stack(tuple(losses)) for losses in self._losses]).mean(0)  # (5,)
        names = self._losses[0]._fields
        counts = loss.new_zeros(10, dtype=torch.float64)
        counts[0], counts[1] = self._n_watched, self._n_proposal
        counts[2:6], counts[6:] = self._counts["rpn"], self._counts["roi"]
        add_up([counts])
        n_watched, n_proposal, *places = counts.tolist()
        of = {"rpn": places[:4], "roi": places[4:]}
        speed = self._n_image / (time.monotonic() - self._since)
        self.start()
        return (
            dict(zip(names, loss.tolist(), strict=True))
            | {"images_per_second": speed}
            | {name: _ratio(of[part][right], of[part][all_]) for name, (part, right, all_) in _RATES.items()}
            | {"n_proposal": _ratio(n_proposal, n_watched)}
            | {"n_pos_anchor": _ratio(of["rpn"][0], n_watched), "n_pos_roi": _ratio(of["roi"][0], n_watched)}
        )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
