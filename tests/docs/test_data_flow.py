"""The figure of the data flow: complete, about files that are there."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FIGURE = (ROOT / "docs/data_flow.svg").read_text(encoding="utf-8")


def test_every_file_on_it_is_there():
    named = set(re.findall(r"\w+\.py", FIGURE))
    there = {path.name for room in ("model", "data", "utils") for path in (ROOT / room).rglob("*.py")} | {"trainer.py"}
    assert len(named) > 6
    assert named <= there


def test_it_is_whole():
    root = ET.fromstring(FIGURE)
    width, height = (float(root.get(side)) for side in ("width", "height"))
    assert root.get("viewBox") == f"0 0 {width:g} {height:g}"
    for text in root.iter("{http://www.w3.org/2000/svg}text"):
        assert 0 < float(text.get("x")) < width, text.text
        assert 0 < float(text.get("y")) < height, text.text
    words = " ".join(text.text for text in root.iter("{http://www.w3.org/2000/svg}text"))
    files = "trainer.py", "model/rpn.py", "model/faster_rcnn.py", "model/utils/proposal_target_creator.py"
    code = "".join((ROOT / name).read_text(encoding="utf-8") for name in files)
    for name in re.findall(r"\b(?:gt_)?(?:roi|rpn|fg|sample)(?:_[a-z]+)+\b(?!\.py)", words):  # as rpn_loc, not y_min
        assert name in code, name
