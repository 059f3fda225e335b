"""Signals end a program with their status; during training they only request a stop."""

import runpy
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from sdft.cli.signals import STOP_SIGNALS, SignalListener


@pytest.fixture(autouse=True)
def default_handlers():
    """Default handlers, whatever the test process has inherited."""
    previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number in STOP_SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [number for number in STOP_SIGNALS if number != signal.SIGINT])
def test_a_signal_ends_a_program_with_its_status_and_the_handlers_are_given_back(number):
    before = {n: signal.getsignal(n) for n in STOP_SIGNALS}
    with pytest.raises(SystemExit) as ended, SignalListener():
        signal.raise_signal(number)
    assert ended.value.code == 128 + number and {n: signal.getsignal(n) for n in STOP_SIGNALS} == before


def test_ctrl_c_stays_a_keyboard_interrupt_outside_training():
    with pytest.raises(KeyboardInterrupt), SignalListener() as listener:
        listener.listen()
        listener.close()
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_during_training_is_a_stop_request(number):
    with SignalListener() as listener:
        listener.listen()
        signal.signal(signal.SIGTERM, lambda *_: None)  # as Lightning does
        listener.listen()
        signal.raise_signal(number)
        assert listener.number == number
        listener.close()
        assert not listener.number


def test_a_second_signal_during_training_kills_but_a_hangup_may_come_twice():
    with SignalListener() as listener:
        listener.listen()
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):  # as when a session is closed
            signal.raise_signal(number)
        assert listener.number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):  # the default of this signal; the others kill the process
            signal.raise_signal(signal.SIGINT)


def test_launched_processes_survive_a_repeated_signal(monkeypatch):
    monkeypatch.setattr("sdft.cli.signals.is_launched", lambda: True)
    with SignalListener() as listener:
        listener.listen()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert listener.number == signal.SIGINT


def test_a_hangup_ignored_at_the_start_stays_ignored():  # nohup
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with SignalListener() as listener:
        signal.raise_signal(signal.SIGHUP)
        listener.listen()
        signal.raise_signal(signal.SIGHUP)
        assert not listener.number
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.parametrize("arguments", [["sdft", "show", "adapter=x"], ["train.py"], ["evaluate.py"]])
def test_ctrl_c_during_the_first_imports_ends_in_one_line(arguments, monkeypatch, capsys):
    def interrupt(module):
        assert module.startswith("sdft.apps.")
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr("importlib.import_module", interrupt)
    file = ROOT / ("sdft/__main__.py" if arguments[0] == "sdft" else arguments[0])
    monkeypatch.delitem(sys.modules, "sdft.__main__", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(file), run_name="__main__")
    assert ended.value.code == 130 and capsys.readouterr().err == "interrupted\n"


def test_nothing_slow_is_imported_before_ctrl_c_is_handled():
    code = "import sys; before = set(sys.modules); import sdft.__main__; print(*sorted({*sys.modules} - before))"
    command = [sys.executable, "-c", code]
    modules = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    own = {name for name in modules if name.partition(".")[0] == "sdft"}
    assert {name.partition(".")[0] for name in {*modules} - own} <= sys.stdlib_module_names and len(own) < 8
