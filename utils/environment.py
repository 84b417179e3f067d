"""What a run was made with: the commit of this code, the versions of its libraries, the machine."""
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_ROOT = Path(__file__).parent.parent
_PACKAGES = ("torch", "torchvision", "numpy", "pillow", "cupy-cuda13x")


def describe_environment(device: torch.device) -> dict:
    """Return plain values that a run's results depend on besides its options; `None` for what is not there.

    "commit" is None and "modified" too where this folder is no git repository; "modified" says whether a tracked
    file differs from the commit.
    """
    commit = _git("rev-parse", "HEAD")
    modified = commit and bool(_git("status", "--porcelain", "--untracked-files=no"))
    on_gpu = device.type == "cuda"
    return {"commit": commit, "modified": modified, "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
            "cuda": torch.version.cuda if on_gpu else None, "cudnn": torch.backends.cudnn.version() if on_gpu else None,
            "device": torch.cuda.get_device_name(device) if on_gpu else _processor(),
            "threads": torch.get_num_threads()}


def _processor():
    """The name of the processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*words):
    """What git prints of this project; None where there is no git, or no repository in just this folder."""
    if not (_ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", _ROOT, *words], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
