"""Tests of utils.progress."""

from utils.progress import working_on


def test_a_line_is_there_while_something_works(capsys):
    with working_on("writing last.pth"):
        assert "writing last.pth ..." in capsys.readouterr().err
    assert capsys.readouterr().err.strip() == ""  # wiped away
    with working_on("writing last.pth", shown=False):
        pass
    assert capsys.readouterr() == ("", "")
