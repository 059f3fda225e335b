"""The folder of a run: shared by its processes, locked against other runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import sdft.distributed as processes
from sdft.runs.files import check_output_path, remove_partial_files
from sdft.runs.invocation import ExitStatus, Invocation
from sdft.runs.lock import Lock
from sdft.runs.metadata import RunRecord, mark_failed
from sdft.runs.resume import has_started, store_overrides
from sdft.training.process_launcher import launch_processes

RUN_FILES = (  # that a run replaces or removes
    *(
        "config.yaml",
        "metrics.csv",
        "changes.diff",
        "images.csv",
        "data.json",
        "data.png",
        "loss.png",
        "samples.png",
        "samples",
    ),
    *("checkpoints", "adapter", "embedding", "pipeline", "best", "evaluation"),
)


def launch_or_join(strategy, invocation: Invocation) -> Path:
    """Join the process group and return the run folder of rank 0, which all ranks see.

    If this process has to launch the others, run them to their end and raise `ExitStatus` instead.
    """
    if count := strategy.count_processes_to_launch():
        command = [*invocation.restart[1:], *invocation.arguments]
        status = launch_processes(count, invocation.folder, command)
        raise ExitStatus(mark_failed(invocation.folder, status))
    processes.init_process_group(strategy.on_cpu())
    return verify_shared_folder(processes.broadcast(invocation.folder))


def verify_shared_folder(folder: Path) -> Path:
    """`ValueError` when the run folder is not visible to the ranks of another machine."""
    if blind := [str(rank) for rank, visible in enumerate(processes.all_gather(folder.is_dir())) if not visible]:
        raise ValueError(f"{folder}: not visible to rank {', '.join(blind)}; use a file system that all machines share")
    return folder


@contextmanager
def open_run_folder(folder: Path, overrides: Sequence[str] = ()) -> Iterator[RunRecord]:
    """Hold the folder's lock on rank 0, store the overrides there, and record the end of a started run.

    What a killed run has left half written is removed. `ValueError` for a folder with files of others that a run would replace.
    """
    record = RunRecord(folder)
    if processes.rank():
        with record.end_on_error():
            yield record
        return
    check_output_path("hydra.run.dir", folder)
    with Lock(folder, "a run"):
        if has_started(folder):
            remove_partial_files(folder)
        elif foreign := [name for name in RUN_FILES if (folder / name).exists()]:
            raise ValueError(f"{folder}: {foreign[0]} in it is not of a run; choose an empty folder as hydra.run.dir")
        with store_overrides(folder, overrides, lambda: bool(record.metadata)), record.end_on_error():
            yield record
