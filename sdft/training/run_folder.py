"""The folder of a run: shared by its processes, locked against other runs."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import sdft.distributed as processes
from sdft.runs.files import remove_partial_files
from sdft.runs.invocation import ExitStatus, Invocation
from sdft.runs.lock import Lock
from sdft.runs.metadata import mark_failed


def launch_or_join(strategy, invocation: Invocation) -> Path:
    """Join the process group and return the run folder of rank 0, which all ranks see.

    If this process has to launch the others, run them to their end and raise `ExitStatus` instead.
    """
    if count := strategy.count_processes_to_launch():
        command = [*invocation.restart[1:], *invocation.arguments]
        status = processes.launch_processes(count, invocation.folder, command)
        raise ExitStatus(mark_failed(invocation.folder, status))
    processes.init_process_group(strategy.on_cpu())
    return verify_shared_folder(processes.broadcast(invocation.folder))


def verify_shared_folder(folder: Path) -> Path:
    """`ValueError` when the run folder is not visible to the ranks of another machine."""
    if blind := [str(rank) for rank, visible in enumerate(processes.all_gather(folder.is_dir())) if not visible]:
        raise ValueError(f"{folder}: not visible to rank {', '.join(blind)}; use a file system that all machines share")
    return folder


@contextmanager
def lock_run_folder(folder: Path) -> Iterator[Path]:
    """Hold the folder's lock on rank 0, and remove what a killed run has left half written."""
    with Lock(folder, "a run") if processes.rank() == 0 else nullcontext() as lock:
        if lock:
            remove_partial_files(folder)
        yield folder
