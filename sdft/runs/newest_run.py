"""The run that a program takes when none is given."""

from functools import cache
from pathlib import Path

from sdft.distributed import get_process_info
from sdft.runs.metadata import RECORD_FILE, read_state
from sdft.runs.terminal import print_text


def find_newest_run(outputs: Path = Path("outputs")) -> Path:
    """The run folder that finished last."""
    files = sorted(outputs.glob(f"*/*/{RECORD_FILE}"), key=lambda file: file.stat().st_mtime, reverse=True)
    newest = next((file.parent for file in files if read_state(file.parent) == "finished"), None)
    if newest is None:
        raise ValueError(f"run=null: no finished run in {outputs}/; train one first, or give run=FOLDER")
    report_default_run(newest, "which finished last")
    return newest


@cache
def report_default_run(run: Path, reason: str) -> None:
    """Print once which run is used because none was given."""
    if get_process_info().rank == 0:
        print_text(f"run        {run}, {reason}", flush=True)
