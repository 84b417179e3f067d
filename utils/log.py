"""What a training run shows of itself: log.jsonl and curves.png in its folder, and a live view in Visdom.

Shapes: H, W image height and width in pixels.
"""

import html
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from utils.files import write_text
from utils.vis import LOSSES, plot_curves

_REDRAW_AFTER = 30  # seconds
_TIME_LIMITS = 1, 5  # seconds for Visdom's server to accept a connection and to answer


class BoardError(Exception):
    """There is no live view; the message is one line for the user."""


class VisdomBoard:
    """The live view of a run: the windows of environment `env` on the Visdom server at localhost:`port`.

    Nothing is imported or connected before `connect`. It and all methods raise BoardError where there is no
    server, or none that answers within a few seconds.
    """

    def __init__(self, env: str, port: int):
        self.env, self.port = env, port
        self.client = None

    def connect(self, options: Mapping) -> None:
        """Find the server and show the options of the run."""
        try:
            import requests
            import visdom
        except ImportError as error:
            raise BoardError(f"No live view, visdom is not there ({error}); training goes on.") from error
        session = requests.Session()
        session.trust_env = False  # a proxy has no business between two programs of one machine
        where = f"localhost:{self.port}"

        class Client(visdom.Visdom):
            """Visdom's client with what it lacks: time limits, and an error whenever the server refuses."""

            def _handle_post(self, url: str, data: str) -> str:
                try:
                    reply = session.post(url, data=data, timeout=_TIME_LIMITS)
                    reply.raise_for_status()
                except requests.RequestException as error:
                    why = type(error).__name__
                    raise BoardError(f"Visdom on {where} is gone ({why}); training goes on.") from error
                return reply.text

        # Built with send=False, the client does not warn about the incoming socket that it does without.
        client = Client(port=self.port, env=self.env, use_incoming_socket=False, send=False)
        client.send = True
        cells = [(html.escape(str(name)), html.escape(str(value))) for name, value in options.items()]
        table = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in cells)
        try:
            client.text(f"<table>{table}</table>", win="options", opts={"title": "options"})
        except BoardError as error:
            raise BoardError(
                f"No Visdom server on {where}; training goes on. To have one next time: "
                f"python -m visdom.server -bind_local -port {self.port} (downloads its page first); offline: "
                'python -c "from visdom.server.run_server import start_server; '
                f"start_server({self.port}, base_url='', bind_local=True)\""
            ) from error
        self.client = client

    def curves(self, records: list[dict]) -> None:
        """Draw the run's records so far into the windows "losses" and "test mAP"."""
        for win, kind, names, look in (
            ("losses", "train", LOSSES, {"ytype": "log"}),
            ("test mAP", "eval", ("map",), {"markers": True}),
        ):
            rows = [record for record in records if record["kind"] == kind]
            if rows:  # all of them: the server takes a new curve far faster than it appends to an old one
                value = np.array([[row[name] for name in names] for row in rows], dtype=float)
                step = np.array([row["step"] for row in rows])
                look |= {"title": win, "xlabel": "step", "legend": list(names)}
                self.client.line(value, step, win=win, opts=look)

    def picture(self, name: str, img: np.ndarray) -> None:
        """Show an image, (H, W, 3) uint8, in the window `name`."""
        self.client.image(img.transpose(2, 0, 1), win=name, opts={"title": name})

    def save(self) -> None:
        """Let the server keep the windows on its disk."""
        self.client.save([self.env])


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
    """The log of one training run, in `folder` (made where missing) and in a Visdom environment `env`.

    `visdom` is "auto" (a live view, with `options`, where a server runs on localhost:`visdom_port`; otherwise
    one line says how to start one) or "off". The server is first asked when there is something to show.
    `start_step` is the step that a resumed run goes on from: log.jsonl keeps its lines up to it, and starts
    anew at 0. Raises ValueError for another `visdom`, or where log.jsonl is damaged before its last line.
    """

    def __init__(
        self, folder: Path, env: str, visdom: str, visdom_port: int, options: Mapping, start_step: int = 0
    ):
        if visdom not in ("auto", "off"):
            raise ValueError(f"visdom is {visdom!r}; choose 'auto' or 'off'")
        self.path = Path(folder) / "log.jsonl"
        self.options = options
        self.board = VisdomBoard(env, visdom_port) if visdom == "auto" else None
        self.records: list[dict] = []
        self._drawn = -math.inf
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self.records = _read(self.path, start_step) if start_step else []
            write_text(self.path, "".join(json.dumps(record) + "\n" for record in self.records))

    @property
    def watched(self) -> bool:
        """Whether there may be a live view, so that pictures are worth making."""
        return self.board is not None

    def losses(
        self, step: int, epoch: int, losses: Mapping[str, float], lr: float, images_per_second: float
    ) -> None:
        """Log `rpn_loc rpn_cls roi_loc roi_cls total` of `losses`, the learning rate and the speed."""
        values = {name: losses[name] for name in LOSSES} | {"lr": lr, "images_per_second": images_per_second}
        numbers = {name: _finite(value) for name, value in values.items()}
        self._append({"kind": "train", "step": step, "epoch": epoch} | numbers)
        if time.monotonic() - self._drawn >= _REDRAW_AFTER:
            self._redraw()

    def evaluation(self, step: int, epoch: int, map: float, ap: Mapping[str, float | None]) -> None:
        """Log the mean average precision and that of each class, None or NaN where it has no object."""
        by_class = {name: _finite(value) for name, value in ap.items()}
        self._append({"kind": "eval", "step": step, "epoch": epoch, "map": _finite(map), "ap": by_class})
        self._redraw()

    def picture(self, name: str, img: np.ndarray) -> None:
        """Show an image, (H, W, 3) uint8, in the live view."""
        self._show(lambda board: board.picture(name, img))

    def close(self) -> None:
        """Draw the curves a last time and let the live view be kept."""
        if self.records:
            self._redraw()
        if self.board and self.board.client:
            self._show(VisdomBoard.save)

    def _append(self, record: dict) -> None:
        self.records.append(record)
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self._show(lambda board: board.curves(self.records))

    def _redraw(self) -> None:
        plot_curves(self.records, self.path.with_name("curves.png"))
        self._drawn = time.monotonic()

    def _show(self, draw: Callable[[VisdomBoard], None]) -> None:
        """Draw on the live view; at its first failure say so once and do without from then on."""
        if self.board is None:
            return
        try:
            if self.board.client is None:
                self.board.connect(self.options)
            draw(self.board)
        except BoardError as error:
            print(error, flush=True)
            self.board = None


class NoLog:
    """In the place of a `Log` where another process keeps it."""

    watched = False

    def losses(self, *args) -> None:
        """Do nothing."""

    evaluation = close = losses
