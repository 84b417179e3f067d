"""demo.ipynb: it runs from top to bottom, and is committed with its outputs.

Here it trains its own network for two steps, so its assertions must hold for a poor network as well.
"""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from data.shapes_dataset import FOLDER, FORMAT_VERSION, make_shapes

ROOT = Path(__file__).parent.parent
PATH = ROOT / "demo.ipynb"
NOTEBOOK = nbformat.read(PATH, as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
OUTPUTS = [output for cell in CODE for output in cell.outputs]


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """Return an empty folder to execute the notebook in; nothing is written elsewhere.

    Its data set has the images that the notebook needs, of the 300 that it would draw.
    """
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("NOTEBOOK_OPTIONS", "--max-steps=2 --head-width=64 --eval-split=trainval")
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    folder = tmp_path / "workspace"
    small = make_shapes(folder / FOLDER, n_trainval=2, n_test=30)
    small.rename(small.with_name(f"shapes-v{FORMAT_VERSION}-240-60-0"))
    return folder


def test_it_runs_from_top_to_bottom_and_a_false_assertion_fails(workspace):
    notebook = nbformat.read(PATH, as_version=4)
    client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(workspace)}})
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
        wrong = next(cell for cell in notebook.cells if "(228, 16)" in cell.source).copy()
        wrong.source = wrong.source.replace("228, 16", "196, 16")
        with pytest.raises(CellExecutionError, match="AssertionError"):
            client.execute_cell(wrong, index)
    assert (workspace / "runs/notebook/last.pth").is_file()  # it has trained
    assert len(list(workspace.glob("datasets/*"))) == 1  # on the data set of this test
    assert "2 steps of training" in str(notebook.cells)


def test_it_is_committed_with_its_outputs():
    assert [cell.execution_count for cell in CODE] == list(range(1, len(CODE) + 1))  # in one go
    assert sum("image/jpeg" in output.get("data", {}) for output in OUTPUTS) >= 19
    assert all(output.output_type in ("stream", "display_data", "execute_result") for output in OUTPUTS)
    assert all(output.name == "stdout" for output in OUTPUTS if output.output_type == "stream")  # no warning
    assert "runs/demo/last.pth: 1100 steps of training" in str(OUTPUTS)  # with the network of `make demo`
    assert PATH.stat().st_size < 1.6e6


def test_its_outputs_do_not_depend_on_the_machine():
    text = [output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in OUTPUTS]
    assert not re.search(r"/(home|root|tmp|work|Users|mnt|opt)\b|\d\d:\d\d:\d\d|20\d\d-\d\d", " ".join(text))
    assert not any(cell.metadata for cell in NOTEBOOK.cells)  # times of execution
    assert set(NOTEBOOK.metadata) == {"kernelspec", "language_info"}
    assert set(NOTEBOOK.metadata.language_info) == {"name"}  # no version


def test_every_section_asserts_its_claims():
    section, claims = None, {}
    for cell in NOTEBOOK.cells:
        heading = re.match(r"## (\d+)\.", cell.source)
        section = heading[1] if heading else section
        if section and cell.cell_type == "code":
            claims[section] = claims.get(section, 0) + len(re.findall(r"^\s*assert ", cell.source, re.MULTILINE))
    assert list(map(int, claims)) == list(range(18))
    assert all(n for name, n in claims.items() if name != "0"), claims


def test_it_imports_no_script():
    scripts = "|".join(path.stem for path in ROOT.glob("*.py") if path.stem != "trainer")
    assert not any(re.search(rf"^(import|from) ({scripts})\b", cell.source, re.MULTILINE) for cell in CODE)
