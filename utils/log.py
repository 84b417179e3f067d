"""What a training run shows of itself: log.jsonl, curves.png and pictures/ in its folder, and live views.

Shapes: H, W image height and width in pixels.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from utils.boards import BoardError, BoardMissing, TensorBoard, VisdomBoard
from utils.curves import FIGURES, plot_curves
from utils.files import replacing, write_text

_REDRAW_AFTER = 30  # seconds
_RETRY_AFTER = 60  # seconds until a live view that was not there is asked again


class LogError(ValueError):
    """A log cannot be read; the message is one sentence that says why."""


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
            raise LogError(f"{path}, line {number} is no JSON, {line[:80]!r}: delete that line") from error
        if not (isinstance(record, dict) and isinstance(record.get("step"), int)
                and record.get("kind") in ("train", "eval")):
            raise LogError(f"{path}, line {number} is no record of a run, {line[:80]!r}: delete that line")
        if record["step"] <= last_step:
            records.append(record)
    return records


class Log:
    """The log of one training run, in `folder` (made where missing) and on `boards`, live views of it.

    A board (see utils/boards.py) is first asked here, with the `options` of the run; one that is not there, or goes
    away, is one line on the screen, and is asked again every minute, unless it is said to be missing for good. A disk
    that refuses files is one line, too: the lines that it did not take are written as soon as it takes some.
    `start_step` is the step that a resumed run goes on from: log.jsonl keeps its lines up to it, and starts anew at 0.
    Raises LogError where log.jsonl is damaged before its last line.
    """

    def __init__(self, folder: Path, options: Mapping, boards: Sequence = (), start_step: int = 0):
        self.folder, self.path = Path(folder), Path(folder) / "log.jsonl"
        self.boards, self.options = list(boards), options
        self.records: list[dict] = []
        self._drawn, self._torn, self._refused = -math.inf, False, False
        self._ask_at = dict.fromkeys(boards, -math.inf)  # those that are not connected, and when to ask them
        self._silent = set()  # of which it was said that they are not there
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self.records = _read(self.path, start_step) if start_step else []
            write_text(self.path, "".join(json.dumps(record) + "\n" for record in self.records))
        self._show(lambda board: None)

    @property
    def watched(self) -> bool:
        """Whether there is a live view, so that pictures between evaluations are worth making."""
        return len(self._ask_at) < len(self.boards)

    def evaluated(self, step: int) -> bool:
        """Whether there is an evaluation of the weights after `step` steps."""
        return any(record["kind"] == "eval" and record["step"] == step for record in self.records)

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
        with self._writing():
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

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A block that writes files, without which training goes on."""
        try:
            yield
            self._refused = False
        except OSError as error:
            if not self._refused:
                print(f"{self.folder}: a file could not be written ({error.strerror or error}); training goes on, but "
                      "make room: a checkpoint will need it", flush=True)
            self._refused = True

    def _append(self, record: dict) -> None:
        self.records.append(record)
        with self._writing():
            torn, self._torn = self._torn, True
            if torn:  # half a line may have been written
                write_text(self.path, "".join(json.dumps(record) + "\n" for record in self.records))
            else:
                with self.path.open("a") as file:
                    file.write(json.dumps(record) + "\n")
            self._torn = False
        self._show(lambda board: board.update(self.records))

    def _redraw(self) -> None:
        with self._writing():
            plot_curves(self.records, self.path.with_name("curves.png"))
        self._drawn = time.monotonic()

    def _show(self, draw: Callable) -> None:
        """Draw on the live views, and connect those whose time has come; what goes wrong there ends nothing."""
        for board in list(self.boards):
            try:
                if board in self._ask_at:
                    if time.monotonic() < self._ask_at[board]:
                        continue
                    board.connect(self.options)
                    del self._ask_at[board]
                    if board in self._silent:
                        print(f"{board} is there again", flush=True)
                        self._silent.remove(board)
                else:  # what is there again is drawn on the next time: one call waits once
                    draw(board)
            except Exception as error:  # a stranger's program at the other end, or one of its packages
                self._ask_at[board] = time.monotonic() + _RETRY_AFTER
                if board not in self._silent:
                    here = isinstance(error, BoardError)
                    print(error if here else f"No live view ({type(error).__name__}: {error}); training goes on.",
                          flush=True)
                self._silent.add(board)
                if isinstance(error, BoardMissing):
                    self.boards.remove(board)
                    del self._ask_at[board]


class NoLog:
    """In the place of a `Log` where another process keeps it."""

    watched = False

    def training(self, *args) -> None:
        """Do nothing."""

    evaluation = close = training

    def evaluated(self, step: int) -> bool:
        """Leave it to the other process to know."""
        return True


def open_log(folder: Path, options: Mapping, start_step: int) -> Log:
    """The log of a run with the live views that its options `visdom`, `visdom_port`, `env` and `tensorboard` name."""
    boards = [VisdomBoard(options["env"], options["visdom_port"])] if options["visdom"] == "auto" else []
    boards += [TensorBoard(Path(folder) / "tensorboard", start_step)] if options["tensorboard"] else []
    return Log(folder, options, boards, start_step)
