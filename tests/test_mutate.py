"""The table of tests/mutate.py fits the source, and the script tells what is caught from what is not."""
import mutate
import pytest
from mutate import MISTAKES, ROOT, Mistake

TOPICS = {"bbox2loc", "loc2bbox", "bbox_iou", "anchors", "AnchorTargetCreator", "ProposalCreator",
          "ProposalTargetCreator", "sampling", "RoI pooling", "de-normalisation", "smooth L1", "normaliser",
          "optimizer", "11-point metric", "area metric", "inclusive pixels", "difficult", "VOC reader", "flip",
          "channel order"}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.what)
def test_mistake_fits_the_source(mistake):
    right = (ROOT / mistake.file).read_text(encoding="utf-8")
    wrong, line = mutate.mutated(ROOT, mistake)  # raises unless the piece occurs once
    compile(wrong, mistake.file, "exec")
    assert wrong != right
    assert right.splitlines()[:line - 1] == wrong.splitlines()[:line - 1]
    assert mistake.right.splitlines()[0] in right.splitlines()[line - 1]
    assert mistake.tests
    assert all((ROOT / test).is_file() for test in mistake.tests)


def test_names_and_topics():
    assert len({mistake.what for mistake in MISTAKES}) == len(MISTAKES)
    assert {mistake.what.split(": ")[0] for mistake in MISTAKES} == TOPICS
    places = {mistake.file for mistake in MISTAKES if mistake.what.startswith("difficult")}
    assert places == {"utils/voc_eval.py", "data/voc.py", "train.py"}  # in the metric and in training


@pytest.mark.parametrize(("right", "n"), [("y", 2), ("z", 0)])
def test_a_piece_that_does_not_occur_once_is_named(tmp_path, right, n):
    (tmp_path / "a.py").write_text("y = x\nx = y\n")
    with pytest.raises(ValueError, match=rf"^a\.py has '{right}' {n} times: the mistake 'm' needs"):
        mutate.mutated(tmp_path, Mistake("m", "a.py", right, "x", ()))


TESTS = ("tests/test_area.py",)
TINY = (Mistake("sum", "area.py", "height * width", "height + width", TESTS),
        Mistake("negative", "area.py", "max(height, 0)", "height", TESTS),
        Mistake("import", "area.py", "import math", "import no_such_module", TESTS))


@pytest.fixture
def project(tmp_path):
    """One module, one test that misses something."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n')
    (tmp_path / "area.py").write_text("import math\n\n\ndef area(height, width):\n    height = max(height, 0)\n"
                                      "    return math.fabs(height * width)\n")
    (tmp_path / TESTS[0]).write_text("from area import area\n\n\ndef test_area():\n    assert area(2, 5) == 10\n")
    return tmp_path


def test_round_trip(project, capsys):
    before = {path: path.read_text() for path in project.rglob("*.*")}
    assert not mutate.check(project, TINY)
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert head == "mistake | where | written | for | first test that failed"
    assert rows[:2] == [
        "sum | area.py:6 | height + width | height * width | tests/test_area.py::test_area",
        "negative | area.py:5 | height | max(height, 0) | SURVIVED"]
    assert rows[2] == ("import | area.py:1 | import no_such_module | import math | NOT ACCEPTED, no test failed but "
                       "pytest exits with 2: ModuleNotFoundError: No module named 'no_such_module'")
    assert last.startswith("3 mistakes, 1 caught in ")
    assert {path: path.read_text() for path in project.rglob("*.*")} == before  # nor anything new


@pytest.mark.parametrize(("code", "failed", "caught", "words"), [
    (1, "t.py::test[a] - assert 1 == 2", True, "t.py::test[a]"),
    (1, "t.py::test - ValueError: no", True, "t.py::test"),
    (0, None, False, "SURVIVED"),
    (1, "t.py::test - ImportError: no", False, "NOT ACCEPTED, the code is broken: t.py::test - ImportError: no"),
    (1, None, False, "NOT ACCEPTED, no test failed but pytest exits with 1: fixture"),
    (5, None, False, "NOT ACCEPTED, no test failed but pytest exits with 5: fixture"),
])
def test_verdict(monkeypatch, code, failed, caught, words):
    monkeypatch.setattr(mutate, "run_tests", lambda root, tests: (code, failed, "a\nE   fixture\nE   more\n"))
    assert mutate.verdict(None, ()) == (caught, words)


def test_tests_that_fail_by_themselves_stop_it(project, monkeypatch, capsys):
    monkeypatch.setattr(mutate, "run_tests", lambda root, tests: (1, "t.py::test - no", "the output"))
    with pytest.raises(SystemExit, match="the output\nthe tests fail on the unchanged copy, exit code 1"):
        mutate.check(project, TINY)
    assert capsys.readouterr().out == ""


def test_unchanged_copy_runs_each_file_of_tests_once(project, monkeypatch):
    runs = []
    monkeypatch.setattr(mutate, "run_tests", lambda root, tests: runs.append((root, [*tests])) or (0, None, ""))
    mutate.check(project, TINY)
    assert [tests for _, tests in runs] == [[*TESTS]] * 4  # before the first, then for each of three
    assert project not in {root for root, _ in runs}


def test_names_choose(monkeypatch):
    seen = []
    monkeypatch.setattr(mutate, "check", lambda root, mistakes: seen.extend(m.what for m in mistakes) or len(seen) > 4)
    with pytest.raises(SystemExit) as caught:
        mutate.main(["loc2bbox", "off by one"])
    assert caught.value.code == 1
    assert seen == ["loc2bbox: height without the clamp", "loc2bbox: whole width for half of it", "flip: off by one"]
    with pytest.raises(SystemExit) as caught:
        mutate.main([])
    assert caught.value.code == 0
    assert seen[3:] == [mistake.what for mistake in MISTAKES]
    with pytest.raises(SystemExit, match="no mistake is called 'loc3bbox'; there are:\nbbox2loc: axes swapped\n"):
        mutate.main(["loc3bbox"])
