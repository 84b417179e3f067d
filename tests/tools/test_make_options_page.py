"""docs/options.md is what its generator writes, and lists every command."""

from tools.make_options_page import ROOT, config_classes, options_page


def test_the_page_is_up_to_date():
    written = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert written == options_page(), "run: python -m tools.make_options_page"


def test_every_command_is_listed():
    names = {config_class.__name__ for config_class in config_classes()}
    assert names == {"TrainConfig", "EvalConfig", "PredictConfig", "CheckConfig", "AnchorConfig", "BenchConfig"}
    page = options_page()
    assert all(
        f"## `{line}" in page for line in ("python train.py train`", "python eval.py`", "python predict.py IMAGE")
    )
    assert "| `--min-size` | `600` | length of the shorter side after resizing, in pixels | paper 3.3 |" in page
