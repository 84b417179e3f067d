"""A Visdom server on this machine, for this machine only: `make dashboard`, or `python -m utils.dashboard`.

Visdom's own command ends where it cannot fetch the scripts of its page. This server starts all the same: it takes
and keeps what runs show, and its page works once the scripts are there.
"""

import argparse
import contextlib
import subprocess
import sys
from pathlib import Path

from utils.config import TrainConfig

_FETCH = "from visdom.server.build import download_scripts; download_scripts()"
_PATIENCE = 60  # seconds for the scripts to arrive


def has_scripts(static: Path) -> bool:
    """Whether visdom's folder `static` holds what its page needs: the last of what it fetches is this note."""
    return (static / "version.built").exists()


def fetch_scripts(static: Path) -> None:
    """Let visdom fetch the scripts of its page into its folder `static`, once; says so where it fails."""
    if has_scripts(static):
        return
    print(f"fetching the scripts of Visdom's page, once, for {_PATIENCE} seconds at most ...", flush=True)
    with contextlib.suppress(subprocess.TimeoutExpired):  # in a process of its own, which can be ended
        subprocess.run([sys.executable, "-c", _FETCH], capture_output=True, timeout=_PATIENCE)
    if not has_scripts(static):
        print("They cannot be fetched: the server keeps what runs show, but its page stays empty until it is started "
              "where they can. Without it: curves.png and pictures/ in runs/<env>/, or --tensorboard.")


def main() -> None:
    """Start the server and serve until it is interrupted."""
    parser = argparse.ArgumentParser(description="Starts a Visdom server on localhost, to which train.py plots.")
    parser.add_argument("--port", type=int, default=TrainConfig.visdom_port, help="default: %(default)s")
    parser.add_argument("--folder", default="runs/.visdom", help="where it keeps its windows; default: %(default)s")
    parser.add_argument("--fetch", action=argparse.BooleanOptionalAction, default=True,
                        help="whether to fetch the scripts of its page where they are missing; default: %(default)s")
    options = parser.parse_args()
    try:
        import visdom
        from visdom.server.run_server import start_server
    except ImportError as error:
        sys.exit(f"error: visdom is not there ({error}): pip install -r requirements.txt")
    if options.fetch:
        fetch_scripts(Path(visdom.__file__).with_name("static"))
    Path(options.folder).mkdir(parents=True, exist_ok=True)

    def say(port: int) -> None:
        other = f" --visdom-port={port}" if port != TrainConfig.visdom_port else ""
        print(f"http://localhost:{port} (Ctrl-C ends it)\nnext: python train.py train --env=NAME ...{other}; there, "
              "choose the environment NAME", flush=True)

    try:
        start_server(options.port, base_url="", env_path=options.folder, bind_local=True, print_func=say)
    except OSError as error:
        sys.exit(f"error: port {options.port} is taken ({error}): choose another one with --port")
    except KeyboardInterrupt:
        print(f"\nkept in {options.folder}")


if __name__ == "__main__":
    main()
