"""Live views of a training run: windows on a Visdom server, and files for TensorBoard.

Shapes: H, W image height and width in pixels; N records of one kind.
"""

import html
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from utils.curves import AP_TITLE, PANELS, Panel, ap_lines, column, smooth

_TIME_LIMITS = 1, 5  # seconds for Visdom's server to accept a connection and to answer
_MOST_POINTS = 400  # of a line in a window: what a screen can show, and a long run costs no more to send
_SIZES = {"loss": (760, 420), "ap": (760, 420)}  # width and height of windows; the others:
_SIZE = 500, 320


class BoardError(Exception):
    """There is no live view; the message is one line for the user."""


class VisdomBoard:
    """The windows of environment `env` on the Visdom server at localhost:`port`.

    Nothing is imported or connected before `connect`. It and all methods raise BoardError where there is no
    server, or none that answers within a few seconds.
    """

    def __init__(self, env: str, port: int):
        self.env, self.port = env, port
        self.client = None
        self._drawn = 0  # records

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
        try:
            self._options(client, options)
        except BoardError as error:
            raise BoardError(
                f"No Visdom server on {where}; training goes on. To have one next time: make dashboard, or "
                f"python -m utils.dashboard --port={self.port}"
            ) from error
        self.client = client

    @staticmethod
    def _options(client, options: Mapping) -> None:
        cells = [(html.escape(str(name)), html.escape(str(value))) for name, value in options.items()]
        rows = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in cells)
        text = f'<table style="font-size: 12px; border-spacing: 12px 0; border-collapse: separate">{rows}</table>'
        client.text(text, win="options", opts={"title": "options", "width": _SIZE[0], "height": 2 * _SIZE[1]})

    def update(self, records: list[dict]) -> None:
        """Draw the run's records so far; `records` has at least one more than at the last call."""
        news = {record["kind"] for record in records[self._drawn:]}
        self._drawn = len(records)
        train = [record for record in records if record["kind"] == "train"]
        evals = [record for record in records if record["kind"] == "eval"]
        if "train" in news:  # all points again: the server takes a new curve far faster than it appends to an old one
            for name, panel in PANELS.items():
                lines = [(label, column(train, figure), color) for figure, (label, color) in panel.lines.items()]
                self._window(name, panel, column(train, "step"), lines)
        if "eval" in news:
            self._window("ap", Panel(AP_TITLE, {}), column(evals, "step"), ap_lines(evals))

    def _window(self, name: str, panel: Panel, step: np.ndarray, lines: list) -> None:
        """Draw lines, each a name, (N,) values and a colour, over (N,) steps; faint ones are raw, not smoothed."""
        styles, values = {}, []
        if panel.smooth:
            for label, value, color in lines:
                values.append(value)
                styles[f"{label}, raw"] = {"line": {"color": color, "width": 1}, "opacity": 0.25, "showlegend": False,
                                           "hoverinfo": "skip"}
        for label, value, color in lines:
            values.append(smooth(value) if panel.smooth else value)
            width = 3 if label == "mAP" else 2
            shape = "hv" if name == "lr" else "linear"
            styles[label] = {"line": {"color": color, "width": width, "shape": shape}}
        shown = np.unique(np.linspace(0, len(step) - 1, min(len(step), _MOST_POINTS)).round().astype(int))
        axis = {"yaxis": {"type": "log" if panel.log else "linear", "rangemode": "tozero"}}
        if name in ("ap", "rate"):
            axis["yaxis"]["range"] = [-0.02, 1.02]
        width, height = _SIZES.get(name, _SIZE)
        beside = name == "ap"  # there may be many classes
        legend = {"orientation": "v" if beside else "h", "x": 1.02 if beside else 0, "y": 1 if beside else -0.25}
        self.client.line(np.stack(values, axis=1)[shown], step[shown], win=panel.title, opts={
            "title": panel.title, "legend": list(styles), "showlegend": len(lines) > 1, "width": width,
            "height": height, "marginleft": 50, "marginright": 20, "margintop": 40, "marginbottom": 40,
            "markers": len(shown) <= 20, "markersize": 5, "traceopts": {"plotly": styles},
            "layoutopts": {"plotly": axis | {"legend": legend, "xaxis": {"title": "step"}}}})

    def picture(self, name: str, img: np.ndarray, step: int) -> None:
        """Show an image, (H, W, 3) uint8, in the window `name`."""
        height, width = img.shape[:2]
        width, height = _SIZES["loss"][0], round(_SIZES["loss"][0] * height / width)
        self.client.image(img.transpose(2, 0, 1), win=name, opts={
            "title": f"{name}, step {step}", "width": width, "height": height + 30})

    def close(self) -> None:
        """Let the server keep the windows on its disk."""
        self.client.save([self.env])


class TensorBoard:
    """The files in `folder` that TensorBoard reads; `start_step` is the step that a resumed run goes on from.

    Nothing is imported or written before `connect`, which raises BoardError where the package is missing.
    """

    def __init__(self, folder: Path, start_step: int = 0):
        self.folder, self.start_step = folder, start_step
        self.writer = None

    def connect(self, options: Mapping) -> None:
        """Open the file and note the options of the run."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise BoardError(
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
