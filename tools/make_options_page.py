"""Write docs/options.md, the options of every command: `python -m tools.make_options_page`."""

import importlib
from collections.abc import Iterator
from pathlib import Path

import model
import utils.config
from utils.config import MODEL, PRETRAINED, Config, option_rows

ROOT = Path(__file__).parents[1]
INTRODUCTION = f"""# Options

Written by `python -m tools.make_options_page`; every command prints its own part with `--help`. Write options as
`--name=value`, several values as `a,b,c`; an unknown option is an error that names the nearest one. Where the default
belongs to the model (`--min-size`, `--lr` and others), this page shows that of `--model={MODEL}`.
"""


def config_classes() -> Iterator[type[Config]]:
    """Yield the options class of each command: those of utils/config.py, then those of tools/*.py."""
    tools = sorted(path.stem for path in (ROOT / "tools").glob("*.py"))
    for module in [utils.config, *(importlib.import_module(f"tools.{name}") for name in tools)]:
        for value in vars(module).values():
            own = isinstance(value, type) and issubclass(value, Config) and value.__module__ == module.__name__
            if own and value.__doc__.startswith("python "):  # else the base of others
                yield value


def options_page() -> str:
    """Return the text of docs/options.md: per command and topic, a table of its options."""
    lines = [INTRODUCTION]
    for config_class in config_classes():
        usage, _, purpose = config_class.__doc__.partition(": ")
        lines.append(f"## `{usage}`\n\n{purpose}\n")
        for topic, rows in option_rows(config_class, model.defaults(MODEL, PRETRAINED)).items():
            lines.append(f"### {topic}\n\n| option | default | meaning | source |\n|---|---|---|---|")
            lines += [
                f"| `--{name}` | {f'`{default}`' * bool(default)} | {rest[0]} | {rest[1]} |"
                for name, default, *rest in rows
            ]
            lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    (ROOT / "docs" / "options.md").write_text(options_page(), encoding="utf-8")
