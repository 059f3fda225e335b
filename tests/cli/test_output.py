"""Output that cannot be encoded or written never stops a program."""

import io
import os
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT

from sdft.cli.output import LossyFile, open_lossy

PROGRAM = """
from sdft.cli.output import protect_output
protect_output()
import os, sys
for number in range(20000):
    print("α", number)
print("ß", file=sys.stderr, flush=True)
file = open("file", "w")
assert file.fileno() > 2 and all(os.get_inheritable(number) for number in range(3))
file.write("end")
"""
SHELL_CASES = {
    "full disk": "{} > /dev/full 2>&1",
    "closed streams": "{} <&- >&- 2>&-",
    "a reader that goes away": "{} 2>&1 | head -1 > /dev/null",
    "ascii": "PYTHONIOENCODING=ascii {} > /dev/null",
    "cp1252, unbuffered": "PYTHONIOENCODING=cp1252 PYTHONUNBUFFERED=1 {} > /dev/full",
}


def run_shell(command: str, *arguments: str, cwd) -> subprocess.CompletedProcess:
    shell = ["bash", "-o", "pipefail", "-c", command.format('"$0" "$@"'), sys.executable, *arguments]
    options = {"capture_output": True, "encoding": "utf-8", "errors": "replace", "timeout": 170}
    return subprocess.run(shell, cwd=cwd, env=os.environ | {"PYTHONPATH": str(ROOT)}, **options)


@pytest.mark.parametrize("case", SHELL_CASES)
def test_a_program_survives_streams_that_refuse_its_output(case, tmp_path):
    assert run_shell(SHELL_CASES[case], "-c", PROGRAM, cwd=tmp_path).returncode == 0
    assert (tmp_path / "file").read_text() == "end"


@pytest.mark.parametrize("program", ["", "inspect", pytest.param("compare", marks=pytest.mark.slow)])
def test_the_programs_protect_their_output(program, tmp_path):
    """The dispatcher, the only program without Hydra, and one with it."""
    arguments = [*program.split(), *(["--help"] if program != "compare" else [str(tmp_path)])]
    finished = run_shell("PYTHONIOENCODING=ascii {} > /dev/full", "-m", "sdft", *arguments, cwd=tmp_path)
    assert finished.returncode == (program == "compare") and "Traceback" not in finished.stderr
    assert not finished.stderr or finished.stderr.startswith("error: ")


def test_a_non_blocking_reader_receives_everything():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    received = []

    def read():
        time.sleep(0.05)
        while data := os.read(reader, 4096):
            received.append(data)

    thread = threading.Thread(target=read)
    thread.start()
    with open(writer, "w", encoding="utf-8") as stream:
        lossy = open_lossy(stream)
        print("x" * 300_000, file=lossy, flush=True)
    thread.join()
    assert sum(map(len, received)) == 300_001


def test_progress_bars_survive_a_dead_terminal():
    from rich.console import Console
    from rich.progress import track

    with open("/dev/full", "wb", buffering=0) as full:
        stream = io.TextIOWrapper(LossyFile(full), "ascii", "backslashreplace", write_through=True)
        console = Console(file=stream, force_terminal=True)
        assert sum(track([1, 2, 3], "α", console=console)) == 6
        from tqdm import tqdm

        assert sum(tqdm([1, 2, 3], desc="α", file=stream)) == 6


@pytest.mark.slow
@pytest.mark.parametrize("case", SHELL_CASES)
def test_a_run_finishes_without_its_log(case, tmp_path):
    options = ["logger=none", "metrics=none", "steps=2", "sampling.steps=2", "validate_every=0", "log_every=1"]
    finished = run_shell(SHELL_CASES[case], str(ROOT / "train.py"), *options, "hydra.run.dir=run", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert '"state": "finished"' in (tmp_path / "run" / "run.json").read_text()
