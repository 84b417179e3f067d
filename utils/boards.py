"""Live views of a training run: windows on a Visdom server, and files for TensorBoard.

Shapes: H, W image height and width in pixels; N records of one kind.
"""

import html
import math
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from utils.curves import AP_TITLE, PANELS, Panel, ap_lines, column, smooth

_PATIENCE = {"plot": 0.6, "picture": 0.3}  # seconds that training waits for Visdom's server, over all it is asked
_MOST_REPLY = 2**20  # bytes
_EVERY = 10  # seconds between two drawings of the windows, at least: each takes a quarter of a second
_MOST_POINTS = 200  # of a line in a window: what a screen can show, and a long run costs no more to send
_SIZES = {  # width and height of windows, in pixels: three rows on a screen of 1600
    "options": (330, 400), "loss": (600, 400), "ap": (600, 400),
    "rate": (460, 330), "count": (460, 330), "speed": (300, 330), "lr": (300, 330),
    "training image": (500, 2000), "test images": (1040, 2000),  # at most
}


def _opts(title: str, name: str) -> dict:
    """Title and size of a Visdom window."""
    width, height = _SIZES[name]
    return {"title": title, "width": width, "height": height}


class BoardError(Exception):
    """There is no live view; the message is one line for the user."""


class BoardMissing(BoardError):
    """There is none, and there will be none."""


class Post:
    """HTTP's POST to a port of this machine, within `left` seconds for all calls together: whatever is there."""

    def __init__(self, port: int):
        self.port = port
        self.left = 0.0

    def __call__(self, path: str, data: str) -> str:
        """Send `data`, return what is answered. Raises OSError, also for an answer that is no success."""
        end = time.monotonic() + self.left

        def left(share=1.0):
            seconds = end - time.monotonic()
            if seconds <= 0:
                raise TimeoutError("no answer in time")
            return seconds * share

        body = data.encode()
        head = (f"POST {path} HTTP/1.0\r\nHost: localhost:{self.port}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n")
        try:
            # localhost may be two addresses, each of which may have that long
            with socket.create_connection(("localhost", self.port), left(0.5)) as server:
                server.settimeout(left())
                server.sendall(head.encode() + body)
                reply = b""
                while len(reply) < _MOST_REPLY:
                    server.settimeout(left())
                    part = server.recv(2**16)
                    if not part:
                        break
                    reply += part
        finally:
            self.left = end - time.monotonic()
        start, _, answer = reply.partition(b"\r\n\r\n")
        if not re.match(rb"HTTP/1\.\d 2\d\d", start):
            raise ConnectionError(f"it answers {start[:40]!r}")
        return answer.decode(errors="replace")


class VisdomBoard:
    """The windows of environment `env` on the Visdom server at localhost:`port`.

    Nothing is imported or connected before `connect`. It and all methods raise BoardError where there is no
    server, or none that answers in time; `connect` begins anew. BoardMissing: there is no visdom.
    """

    def __init__(self, env: str, port: int):
        self.env, self.port = env, port
        self.client = None
        self.post = Post(port)
        self._records, self._n_drawn, self._drawn_at = [], 0, -math.inf

    def connect(self, options: Mapping) -> None:
        """Find the server and show the options of the run."""
        try:
            import visdom
        except ImportError as error:
            raise BoardMissing(f"No live view, visdom is not there ({error}); training goes on.") from error
        post = self.post

        class Client(visdom.Visdom):
            """Visdom's client with what it lacks: a time limit, and an error whenever the server refuses."""

            def _handle_post(self, url: str, data: str) -> str:
                try:
                    return post(urlsplit(url).path, data)
                except OSError as error:
                    raise BoardError(f"Visdom on localhost:{post.port} is gone ({type(error).__name__}); training goes "
                                     "on.") from error

        # Built with send=False, the client does not warn about the incoming socket that it does without.
        client = Client(port=self.port, env=self.env, use_incoming_socket=False, send=False)
        client.send = True
        post.left = _PATIENCE["plot"]
        try:
            self._options(client, options)
        except BoardError as error:
            raise BoardError(
                f"No Visdom server on localhost:{self.port}; training goes on. To have one: make dashboard, or "
                f"python -m utils.dashboard --port={self.port}"
            ) from error
        self.client = client
        self._n_drawn, self._drawn_at = 0, -math.inf  # the server may be another one

    def __str__(self) -> str:
        return f"Visdom on localhost:{self.port}"

    @staticmethod
    def _options(client, options: Mapping) -> None:
        cells = [(html.escape(str(name)), html.escape(str(value))) for name, value in options.items()]
        rows = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in cells)
        text = f'<table style="font-size: 12px; border-spacing: 12px 0; border-collapse: separate">{rows}</table>'
        client.text(text, win="options", opts=_opts("options", "options"))

    def update(self, records: list[dict]) -> None:
        """Take the run's records so far, and draw them unless the last ones were drawn a moment ago."""
        self._records = records
        if records[-1]["kind"] == "eval" or time.monotonic() - self._drawn_at >= _EVERY:
            self._draw(records)

    def _draw(self, records: list[dict]) -> None:
        news = {record["kind"] for record in records[self._n_drawn:]} | ({"eval"} if not self._n_drawn else set())
        self._n_drawn, self._drawn_at = len(records), time.monotonic()
        self.post.left = _PATIENCE["plot"]
        train = [record for record in records if record["kind"] == "train"]
        evals = [record for record in records if record["kind"] == "eval"] or [{"step": 0, "map": None, "ap": {}}]
        for name in _SIZES:  # all points again: the server takes a new curve far faster than it appends to an old one
            if name in PANELS and "train" in news:
                panel = PANELS[name]
                lines = [(label, column(train, figure), color) for figure, (label, color) in panel.lines.items()]
                self._window(name, panel, column(train, "step"), lines)
            elif name == "ap" and "eval" in news:  # its place is there before the first evaluation
                self._window(name, Panel(AP_TITLE, {}), column(evals, "step"), ap_lines(evals))

    def _window(self, name: str, panel: Panel, step: np.ndarray, lines: list) -> None:
        """Draw lines, each a name, (N,) values and a colour, over (N,) steps; faint ones are raw, not smoothed."""
        values, styles = [], {}
        for label, value, color in lines * panel.smooth:
            values.append(value)
            styles[f"{label}, raw"] = {
                "line": {"color": color, "width": 1}, "mode": "lines", "opacity": 0.25, "showlegend": False,
                "hoverinfo": "skip"}
        for label, value, color in lines:
            values.append(smooth(value) if panel.smooth else value)
            shape, width = "hv" if name == "lr" else "linear", 3 if label == "mAP" else 2
            styles[label] = {"line": {"color": color, "width": width, "shape": shape}}
        shown = np.unique(np.linspace(0, len(step) - 1, min(len(step), _MOST_POINTS)).round().astype(int))
        axis = {"type": "log", "tickformat": "~g", "dtick": "D2"} if panel.log else {"rangemode": "tozero"}
        if name in ("ap", "rate"):
            axis = {"range": [-0.02, 1.02]}
        beside = name == "ap"  # there may be many classes
        legend = {"x": 1.02, "y": 1} if beside else {"orientation": "h", "x": 0, "y": -0.2}
        title = {"x": 0.02, "xanchor": "left", "y": 0.97, "yanchor": "top", "font": {"size": 14}}
        title["text"] = panel.title * (len(lines) > 1)  # narrow windows have no room beside the buttons
        layout = {"title": title, "legend": legend, "yaxis": axis, "xaxis": {"title": {"text": "step", "standoff": 2}}}
        look = _opts(panel.title, name) | {
            "legend": list(styles), "showlegend": len(lines) > 1, "markers": len(shown) <= 20, "markersize": 5,
            "marginleft": 50, "marginright": 20, "margintop": 35, "marginbottom": 45 if len(lines) == 1 else 80,
            "traceopts": {"plotly": styles}, "layoutopts": {"plotly": layout}}
        self.client.line(np.stack(values, axis=1)[shown], step[shown], win=panel.title, opts=look)

    def picture(self, name: str, img: np.ndarray, step: int) -> None:
        """Show an image, (H, W, 3) uint8, in the window `name`."""
        self.post.left = _PATIENCE["picture"]
        picture = Image.fromarray(img)
        picture.thumbnail(_SIZES[name], Image.Resampling.LANCZOS)  # the browser's own shrinking is coarse
        self.client.image(np.array(picture).transpose(2, 0, 1), win=name, opts={"title": f"{name}, step {step}"})

    def close(self) -> None:
        """Draw what was not drawn yet, and let the server keep the windows on its disk."""
        if self._n_drawn < len(self._records):
            self._draw(self._records)
        self.post.left = _PATIENCE["picture"]
        self.client.save([self.env])


class TensorBoard:
    """The files in `folder` that TensorBoard reads; `start_step` is the step that a resumed run goes on from.

    Nothing is imported or written before `connect`, which raises BoardError where the package is missing.
    """

    def __init__(self, folder: Path, start_step: int = 0):
        self.folder, self.start_step = folder, start_step
        self.writer = None

    def __str__(self) -> str:
        return "TensorBoard"

    def connect(self, options: Mapping) -> None:
        """Open the file and note the options of the run."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise BoardMissing(
                f"No files for TensorBoard, its package is not there ({error}); training goes on. To have it next "
                "time: pip install tensorboard"
            ) from error
        self.writer = SummaryWriter(self.folder, purge_step=self.start_step + 1 if self.start_step else None)
        rows = [f"| {name} | {value} |" for name, value in options.items()]
        self.writer.add_text("options", "\n".join(["| option | value |", "|---|---|", *rows]), self.start_step)

    def update(self, records: list[dict]) -> None:
        """Add the last of the run's records."""
        record = records[-1]
        if record["kind"] == "train":
            values = {f"{name}/{key}": record.get(key) for name, panel in PANELS.items() for key in panel.lines}
        else:
            values = {f"ap/{name}": value[-1] for name, value, _ in ap_lines(records[-1:])}
        for tag, value in values.items():
            if value is not None and np.isfinite(value):
                self.writer.add_scalar(tag, value, record["step"])
        self.writer.flush()

    def picture(self, name: str, img: np.ndarray, step: int) -> None:
        """Add an image, (H, W, 3) uint8."""
        self.writer.add_image(name, img, step, dataformats="HWC")

    def close(self) -> None:
        """Close the file."""
        self.writer.close()
