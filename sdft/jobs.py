"""Jobs of a sweep: each a fresh process with a single-run command line, as many at a time as there are devices for."""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

LOG = "log.txt"


@dataclass
class Job:
    folder: Path
    words: list[str]
    label: str

    def finished(self) -> bool:
        file = self.folder / "run.json"
        return file.is_file() and json.loads(file.read_text(encoding="utf-8"))["state"] == "finished"

    def run(self, environment: dict[str, str], shared: bool) -> int:
        """Start anew in an empty folder; of jobs that share the terminal, each writes to its own log. Returns the exit code."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        flags = [word for word in self.words if word.startswith("-")]  # behind other words they would end them
        words = [word for word in self.words if word not in flags]
        command = [sys.executable, sys.argv[0], *flags, *words, f"hydra.run.dir={self.folder}"]
        log = open(self.folder / LOG, "w") if shared else None  # noqa: SIM115
        try:
            told = {"stdout": log, "stderr": subprocess.STDOUT} if shared else {}
            return subprocess.run(command, env=os.environ | environment, preexec_fn=with_parent(), **told).returncode
        finally:
            if log:
                log.close()


def with_parent():
    """On Linux a job ends with its sweep, also when that is killed: it would go on writing where the next one starts."""
    if not sys.platform.startswith("linux"):
        return None
    libc, parent = ctypes.CDLL(None), os.getpid()

    def before():
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    return before


def usable(asked: str | None, told: list[tuple[str, str]]) -> list[dict[str, str]]:
    """The environment of each job that runs at the same time: its own GPUs, or its share of the cores.

    As many as `asked` for (`n_jobs=`), else as the GPUs suffice for; on a CPU one. `told` are the words `devices` and
    `accelerator` of every job.
    """
    import torch

    if asked is not None and (not asked.isdigit() or int(asked) < 1):
        raise ValueError(f"n_jobs={asked}: choose 1 or more")
    devices = [int(count) for count, _ in told if str(count).isdigit()]
    visible = [] if any(accelerator == "cpu" for _, accelerator in told) else gpus(torch.cuda.device_count())
    each = max(devices, default=1)
    if not visible:
        count = int(asked or 1)
        threads = max(1, (os.cpu_count() or 1) // count)
        return [{"OMP_NUM_THREADS": str(threads)} if count > 1 else {} for _ in range(count)]
    if asked is None and not devices:
        return [{}]  # devices=auto: one job takes all
    count = int(asked or len(visible) // each)
    if not 0 < count * each <= len(visible):
        raise ValueError(f"n_jobs={count} devices={each}: there are {len(visible)} GPUs")
    return [{"CUDA_VISIBLE_DEVICES": ",".join(visible[i * each : (i + 1) * each])} for i in range(count)]


def gpus(count: int) -> list[str]:
    """Their names as CUDA_VISIBLE_DEVICES has them."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    return told.split(",")[:count] if told else [str(i) for i in range(count)]


def run_all(todo: list[Job], total: int, places: list[dict[str, str]]) -> list[Job]:
    """Run the jobs, one at each place at a time; those that failed."""
    free: Queue = Queue()
    for place in places:
        free.put(place)
    shared, saying, codes = len(places) > 1, threading.Lock(), {}

    def one(job: Job) -> None:
        place = free.get()
        try:
            with saying:
                where = f", log in {job.folder / LOG}" if shared else ""
                print(f"job      {int(job.folder.name) + 1} of {total}: {job.label}{where}", flush=True)
            codes[str(job.folder)] = job.run(place, shared)
            if shared:
                with saying:
                    how = "finished" if codes[str(job.folder)] == 0 else "failed"
                    print(f"{how:<8} {int(job.folder.name) + 1} of {total}: {job.label}", flush=True)
        finally:
            free.put(place)

    with ThreadPoolExecutor(len(places)) as pool:
        list(pool.map(one, todo))
    return [job for job in todo if codes[str(job.folder)] or not job.finished()]
