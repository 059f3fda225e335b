"""Errors that a user can mend are one line."""

import os
from pathlib import Path

import pytest

from sdft.cli.errors import report_errors_in_one_line


def test_a_missing_home_directory_is_named_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(SystemExit), report_errors_in_one_line(show_traceback=False):
        Path("~/run").expanduser()
    assert capsys.readouterr().err == "error: Could not determine home directory.\n"
    with pytest.raises(RuntimeError), report_errors_in_one_line(show_traceback=False):
        raise RuntimeError("a mistake of ours")
