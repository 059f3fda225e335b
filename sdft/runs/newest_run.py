"""The run that a program takes when none is given."""

from functools import cache
from pathlib import Path

from sdft.distributed import get_process_info
from sdft.runs.metadata import RECORD_FILE, read_state


def find_newest_run(outputs: Path = Path("outputs")) -> Path:
    """The run folder that finished last."""
    runs = [file.parent for file in outputs.glob(f"*/*/{RECORD_FILE}") if read_state(file.parent) == "finished"]
    if not runs:
        raise ValueError(f"run=null: no finished run in {outputs}/; train one first, or give run=FOLDER")
    newest = max(runs, key=lambda run: (run / RECORD_FILE).stat().st_mtime)
    report_default_run(newest, "which finished last")
    return newest


@cache
def report_default_run(run: Path, reason: str) -> None:
    """Print once which run is used because none was given."""
    if get_process_info().rank == 0:
        print(f"run        {run}, {reason}", flush=True)
