"""What a training run shows of itself: log.jsonl, curves.png and pictures/ in its folder, and live views.

Shapes: H, W image height and width in pixels.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from utils.boards import BoardError, TensorBoard, VisdomBoard
from utils.curves import FIGURES, plot_curves
from utils.files import replacing, write_text

_REDRAW_AFTER = 30  # seconds


def _finite(value: float | None) -> float | None:
    """A plain float, None where it is no finite number: JSON has no NaN."""
    return float(value) if value is not None and math.isfinite(value) else None


def _read(path: Path, last_step: int) -> list[dict]:
    """The records of a log up to and with `last_step`, without a torn last line."""
    records = []
    lines = path.read_text(errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number} is no JSON, {line[:80]!r}: delete that line") from error
        if record["step"] <= last_step:
            records.append(record)
    return records


class Log:
    """The log of one training run, in `folder` (made where missing) and on `boards`, live views of it.

    A board (see utils/boards.py) is first asked here, with the `options` of the run; one that is not there, or goes
    away, is one line on the screen. `start_step` is the step that a resumed run goes on from: log.jsonl keeps its
    lines up to it, and starts anew at 0. Raises ValueError where log.jsonl is damaged before its last line.
    """

    def __init__(self, folder: Path, options: Mapping, boards: Sequence = (), start_step: int = 0):
        self.folder, self.path = Path(folder), Path(folder) / "log.jsonl"
        self.boards = list(boards)
        self.records: list[dict] = []
        self._drawn = -math.inf
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self.records = _read(self.path, start_step) if start_step else []
            write_text(self.path, "".join(json.dumps(record) + "\n" for record in self.records))
        self._show(lambda board: board.connect(options))

    @property
    def watched(self) -> bool:
        """Whether there is a live view, so that pictures between evaluations are worth making."""
        return bool(self.boards)

    def training(self, step: int, epoch: int, figures: Mapping[str, float]) -> None:
        """Log the `FIGURES` of the last steps; those that `figures` lacks are NaN."""
        numbers = {name: _finite(figures.get(name)) for name in FIGURES}
        self._append({"kind": "train", "step": step, "epoch": epoch} | numbers)
        if time.monotonic() - self._drawn >= _REDRAW_AFTER:
            self._redraw()

    def evaluation(self, step: int, epoch: int, map: float, ap: Mapping[str, float | None], img: np.ndarray) -> None:
        """Log the mean average precision and that of each class, None or NaN where it has no object, and a picture.

        `img` is (H, W, 3) uint8 and goes to pictures/<step>.png, too.
        """
        by_class = {name: _finite(value) for name, value in ap.items()}
        self._append({"kind": "eval", "step": step, "epoch": epoch, "map": _finite(map), "ap": by_class})
        self._redraw()
        (self.folder / "pictures").mkdir(exist_ok=True)
        with replacing(self.folder / "pictures" / f"{step:06d}.png") as partial:
            Image.fromarray(img).save(partial)
        self.picture("test images", img, step)

    def picture(self, name: str, img: np.ndarray, step: int) -> None:
        """Show an image, (H, W, 3) uint8, in the live views."""
        self._show(lambda board: board.picture(name, img, step))

    def close(self) -> None:
        """Draw the curves a last time and let the live views be kept."""
        if self.records:
            self._redraw()
        self._show(lambda board: board.close())

    def _append(self, record: dict) -> None:
        self.records.append(record)
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self._show(lambda board: board.update(self.records))

    def _redraw(self) -> None:
        plot_curves(self.records, self.path.with_name("curves.png"))
        self._drawn = time.monotonic()

    def _show(self, draw: Callable) -> None:
        """Draw on the live views; at the first failure of one say so once and do without it from then on."""
        for board in list(self.boards):
            try:
                draw(board)
            except BoardError as error:
                print(error, flush=True)
                self.boards.remove(board)


class NoLog:
    """In the place of a `Log` where another process keeps it."""

    watched = False

    def training(self, *args) -> None:
        """Do nothing."""

    evaluation = close = training


def open_log(folder: Path, options: Mapping, start_step: int) -> Log:
    """The log of a run with the live views that its options `visdom`, `visdom_port`, `env` and `tensorboard` name."""
    boards = [VisdomBoard(options["env"], options["visdom_port"])] if options["visdom"] == "auto" else []
    boards += [TensorBoard(Path(folder) / "tensorboard", start_step)] if options["tensorboard"] else []
    return Log(folder, options, boards, start_step)
