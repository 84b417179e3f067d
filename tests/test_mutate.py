"""The table of tests/mutate.py fits the source, and the program tells detected mutations from others."""

import mutate
import pytest
from mutate import MUTATIONS, ROOT, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_fits_the_source(mutation):
    original = (ROOT / mutation.file).read_text(encoding="utf-8")
    source, line = mutate.mutated(ROOT, mutation)  # raises unless the text occurs once
    compile(source, mutation.file, "exec")
    assert source != original
    assert original.splitlines()[: line - 1] == source.splitlines()[: line - 1]
    assert mutation.original.splitlines()[0] in original.splitlines()[line - 1]
    assert mutation.tests
    assert all((ROOT / test).is_file() for test in mutation.tests)


def test_names_are_unique_and_the_core_is_covered():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)
    files = {mutation.file for mutation in MUTATIONS}
    core = {f"model/{name}.py" for name in ("faster_rcnn", "rpn", "vgg16")}
    core |= {path.relative_to(ROOT).as_posix() for path in ROOT.glob("model/utils/*.py")} - {
        "model/utils/array_tool.py"
    }
    assert core | {"trainer.py", "utils/voc_eval.py", "data/transforms.py", "data/voc_dataset.py"} <= files


@pytest.mark.parametrize(("original", "n"), [("y", 2), ("z", 0)])
def test_a_text_that_does_not_occur_once_is_named(tmp_path, original, n):
    (tmp_path / "a.py").write_text("y = x\nx = y\n")
    with pytest.raises(ValueError, match=rf"^a\.py contains '{original}' {n} times: the mutation 'm' needs"):
        mutate.mutated(tmp_path, Mutation("m", "a.py", original, "x", ()))


TESTS = ("tests/test_area.py",)
EXAMPLES = mutate.mutations_of(
    "area.py",
    ("sum", "height * width", "height + width"),
    ("negative", "max(height, 0)", "height"),
    ("import", "import math", "import no_such_module"),
)


@pytest.fixture
def project(tmp_path):
    """One module, and one test that misses something."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n')
    (tmp_path / "area.py").write_text(
        "import math\n\n\ndef area(height, width):\n    height = max(height, 0)\n    return math.fabs(height * width)\n"
    )
    (tmp_path / TESTS[0]).write_text("from area import area\n\n\ndef test_area():\n    assert area(2, 5) == 10\n")
    return tmp_path


def test_round_trip(project, capsys):
    before = {path: path.read_text() for path in project.rglob("*.*")}
    assert not mutate.check(project, EXAMPLES)
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert head == "mutation | where | replacement | original | first test that failed"
    assert rows == [
        "sum | area.py:6 | height + width | height * width | tests/test_area.py::test_area",
        "negative | area.py:5 | height | max(height, 0) | SURVIVED",
        "import | area.py:1 | import no_such_module | import math | INVALID, no test failed but pytest exits with 2: "
        "ModuleNotFoundError: No module named 'no_such_module'",
    ]
    assert last.startswith("3 mutations, 1 detected in ")
    assert {path: path.read_text() for path in project.rglob("*.*")} == before  # and no new file


@pytest.mark.parametrize(
    ("code", "failed", "detected", "outcome"),
    [
        (1, "t.py::test[a] - assert 1 == 2", True, "t.py::test[a]"),
        (0, None, False, "SURVIVED"),
        (1, "t.py::test - ImportError: no", False, "INVALID, the code is broken: t.py::test - ImportError: no"),
        (5, None, False, "INVALID, no test failed but pytest exits with 5: fixture"),
    ],
)
def test_verdict(monkeypatch, code, failed, detected, outcome):
    monkeypatch.setattr(mutate, "run_tests", lambda root, tests: (code, failed, "a\nE   fixture\nE   more\n"))
    assert mutate.verdict(None, ()) == (detected, outcome)


def test_tests_that_fail_without_a_mutation_stop_it(project, monkeypatch, capsys):
    monkeypatch.setattr(mutate, "run_tests", lambda root, tests: (1, "t.py::test - no", "the output"))
    with pytest.raises(SystemExit, match="the output\nthe tests fail without a mutation, exit code 1"):
        mutate.check(project, EXAMPLES)
    assert capsys.readouterr().out == ""


def test_words_choose(monkeypatch):
    seen = []
    monkeypatch.setattr(mutate, "check", lambda root, chosen: seen.extend(m.name for m in chosen) or len(seen) > 4)
    with pytest.raises(SystemExit) as caught:
        mutate.main(["loc2bbox", "off by one"])
    assert caught.value.code == 1
    assert seen == ["loc2bbox: height without the clamp", "loc2bbox: whole width instead of half", "flip: off by one"]
    with pytest.raises(SystemExit) as caught:
        mutate.main([])
    assert caught.value.code == 0
    assert seen[3:] == [mutation.name for mutation in MUTATIONS]
    with pytest.raises(SystemExit, match="no mutation is called 'loc3bbox'; there are:\nbbox2loc: axes swapped\n"):
        mutate.main(["loc3bbox"])
