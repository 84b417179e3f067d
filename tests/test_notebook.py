"""demo.ipynb: it runs from top to bottom where nothing was prepared, and is committed with its outputs.

It trains its own network here, for two steps; so its assertions must hold for a bad network as well.
"""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parent.parent
PATH = ROOT / "demo.ipynb"
NOTEBOOK = nbformat.read(PATH, as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
OUTPUTS = [output for cell in CODE for output in cell.outputs]


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Executes a notebook in an empty folder; nothing is written elsewhere."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("NOTEBOOK_STEPS", "2")
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    place = tmp_path / "place"
    place.mkdir()

    def run(notebook):
        NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(place)}}).execute()
        return place

    return run


def test_it_runs_from_top_to_bottom(execute):
    notebook = nbformat.read(PATH, as_version=4)
    place = execute(notebook)
    assert (place / "runs/notebook/last.pth").is_file()  # it has trained
    assert "2 steps of training" in str(notebook.cells)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")


def test_an_assertion_that_fails_is_noticed(execute):
    cell = next(cell for cell in CODE if "(228, 16)" in cell.source)
    wrong = nbformat.v4.new_code_cell(
        "from model.vgg16 import VGG16\n"
        "from model.utils.receptive_field import receptive_field, window_layers\n"
        + cell.source.replace("model.extractor", "VGG16()").replace("228, 16", "196, 16")
    )
    with pytest.raises(CellExecutionError, match="AssertionError"):
        execute(nbformat.v4.new_notebook(cells=[wrong]))


def test_it_is_committed_with_its_outputs():
    assert [cell.execution_count for cell in CODE] == list(range(1, len(CODE) + 1))  # in one go
    assert sum("image/png" in output.get("data", {}) for output in OUTPUTS) >= 18
    assert all(output.output_type in ("stream", "display_data", "execute_result") for output in OUTPUTS)
    assert all(output.name == "stdout" for output in OUTPUTS if output.output_type == "stream")  # no warning
    assert "runs/demo/last.pth: 1100 steps of training" in str(OUTPUTS)  # with the network of `make demo`
    assert PATH.stat().st_size < 3e6


def test_it_says_nothing_of_the_machine():
    text = [output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in OUTPUTS]
    assert not re.search(r"/(home|root|tmp|work|Users|mnt|opt)\b|\d\d:\d\d:\d\d|20\d\d-\d\d", " ".join(text))
    assert not any(cell.metadata for cell in NOTEBOOK.cells)  # times of execution
    assert set(NOTEBOOK.metadata) == {"kernelspec", "language_info"}
    assert set(NOTEBOOK.metadata.language_info) == {"name"}  # no version


def test_every_section_asserts_its_claim():
    section, claims = None, {}
    for cell in NOTEBOOK.cells:
        heading = re.match(r"## (\d+)\.", cell.source)
        section = heading[1] if heading else section
        if section and cell.cell_type == "code":
            claims[section] = claims.get(section, 0) + len(re.findall(r"^\s*assert ", cell.source, re.MULTILINE))
    assert list(map(int, claims)) == list(range(18))
    assert all(n for name, n in claims.items() if name != "0"), claims
