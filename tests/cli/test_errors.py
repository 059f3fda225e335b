"""Errors that a user can mend are one line."""

import os
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sdft.cli.errors import report_errors_in_one_line


def test_a_missing_home_directory_is_named_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(SystemExit), report_errors_in_one_line(show_traceback=False):
        Path("~/run").expanduser()
    assert capsys.readouterr().err == "error: Could not determine home directory.\n"
    with pytest.raises(RuntimeError), report_errors_in_one_line(show_traceback=False):
        raise RuntimeError("a mistake of ours")


def test_ctrl_c_that_breaks_a_clean_up_of_omegaconf_is_no_error(capsys):
    with pytest.raises(SystemExit) as ended, report_errors_in_one_line(show_traceback=False):
        try:
            raise KeyboardInterrupt
        finally:
            OmegaConf.to_container(None)
    assert ended.value.code == 130 and not capsys.readouterr().err


def test_a_path_that_reads_as_an_interpolation_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "data=folder", "data.path=photos${x}"])
    with pytest.raises(SystemExit), report_errors_in_one_line(show_traceback=False):
        _ = OmegaConf.from_dotlist(sys.argv[2:]).data.path
    line = capsys.readouterr().err
    assert line.startswith("error: data.path=photos${x}: ") and "rename" in line and line.count("\n") == 1
