"""demo.ipynb and docs/fpn.ipynb: they run from top to bottom, and are committed with their outputs.

Here demo.ipynb trains its own network for two steps, so its assertions must hold for a poor network as well;
docs/fpn.ipynb has random weights.
"""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from data.shapes_dataset import FOLDER, FORMAT_VERSION, make_shapes

ROOT = Path(__file__).parent.parent
DEMO, FPN = ROOT / "demo.ipynb", ROOT / "docs/fpn.ipynb"
each_book = pytest.mark.parametrize("path", [DEMO, FPN], ids=lambda path: path.name)


def code_of(path):
    """The code cells of a notebook."""
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def outputs_of(path):
    return [output for cell in code_of(path) for output in cell.outputs]


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """Return an empty folder to execute a notebook in; nothing is written elsewhere.

    Its data set has the images that demo.ipynb needs, of the 300 that it would draw.
    """
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))  # no published weights
    monkeypatch.setenv("NOTEBOOK_OPTIONS", "--max-steps=2 --head-width=64 --eval-split=trainval --eval-every=0")
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    folder = tmp_path / "workspace"
    small = make_shapes(folder / FOLDER, n_trainval=2, n_test=30)
    small.rename(small.with_name(f"shapes-v{FORMAT_VERSION}-240-60-0"))
    return folder


def test_it_runs_from_top_to_bottom_and_a_false_assertion_fails(workspace):
    notebook = nbformat.read(DEMO, as_version=4)
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


def test_the_pyramid_runs_from_top_to_bottom(workspace):
    notebook = nbformat.read(FPN, as_version=4)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(workspace)}}).execute()
    assert "weights: random" in str(notebook.cells)
    assert not any(output.get("name") == "stderr" for cell in notebook.cells for output in cell.get("outputs", ()))


@each_book
def test_it_is_committed_with_its_outputs(path):
    code, outputs = code_of(path), outputs_of(path)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))  # in one go
    n_picture = sum("image/jpeg" in output.get("data", {}) for output in outputs)
    assert n_picture >= {DEMO: 19, FPN: 15}[path]
    assert all(output.output_type in ("stream", "display_data", "execute_result") for output in outputs)
    assert all(output.name == "stdout" for output in outputs if output.output_type == "stream")  # no warning
    assert path.stat().st_size < 1.6e6


def test_the_demo_is_committed_with_the_network_of_make_demo():
    assert "runs/demo/last.pth: 1100 steps of training" in str(outputs_of(DEMO))


@each_book
def test_its_outputs_do_not_depend_on_the_machine(path):
    text = [output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs_of(path)]
    assert not re.search(r"/(home|root|tmp|work|Users|mnt|opt)\b|\d\d:\d\d:\d\d|20\d\d-\d\d", " ".join(text))
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.metadata for cell in notebook.cells)  # times of execution
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert set(notebook.metadata.language_info) == {"name"}  # no version


@pytest.mark.parametrize(("path", "n_section", "silent"), [(DEMO, 18, {"0"}), (FPN, 15, set())], ids=["demo", "fpn"])
def test_every_section_asserts_its_claims(path, n_section, silent):
    section, claims = None, {}
    for cell in nbformat.read(path, as_version=4).cells:
        heading = re.match(r"## (\d+)\.", cell.source)
        section = heading[1] if heading else section
        if section and cell.cell_type == "code":
            claims[section] = claims.get(section, 0) + len(re.findall(r"^\s*assert ", cell.source, re.MULTILINE))
    assert list(map(int, claims)) == list(range(n_section))
    assert all(n for name, n in claims.items() if name not in silent), claims


@each_book
def test_it_imports_no_script(path):
    scripts = "|".join(path.stem for path in ROOT.glob("*.py") if path.stem != "trainer")
    assert not any(re.search(rf"^(import|from) ({scripts})\b", cell.source, re.MULTILINE) for cell in code_of(path))
