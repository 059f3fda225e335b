"""Jobs of a sweep in processes of this machine, each with GPUs or cores of its own."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from sdft.distributed import count_cpu_cores, exit_with_parent
from sdft.sweeps.jobs import LOG_FILE, Job


@dataclass
class Local:
    """Processes of this machine, `n_jobs` at a time, each with GPUs or cores of its own."""

    n_jobs: int | None = None
    shares_terminal = True

    def prepare(self, folder: Path, configs: list) -> None:
        if spread := [cfg.num_nodes for cfg in configs if cfg.num_nodes > 1]:
            raise ValueError(f"num_nodes={spread[0]}: this machine is one; choose launcher=submitit")
        self.free = job_environments(self.n_jobs, [(cfg.devices, cfg.accelerator) for cfg in configs])
        self.slots, self.writes_logs = len(self.free), len(self.free) > 1

    def start(self, job: Job):
        return LocalJob(job, self.free, self.writes_logs)


class LocalJob:
    """A job in a process of this machine; of several, each writes to its own log."""

    def __init__(self, job: Job, free: list[dict[str, str]], writes_logs: bool):
        command, self.free, self.place = job.build_command(), free, free.pop(0)
        self.log = open(job.folder / LOG_FILE, "a") if writes_logs else None  # noqa: SIM115
        told = {"stdout": self.log, "stderr": subprocess.STDOUT} if writes_logs else {}
        self.process = subprocess.Popen(
            command, env=os.environ | self.place, preexec_fn=exit_with_parent(os.getpid()), **told
        )

    def exit_code(self) -> int | None:
        code = self.process.poll()
        if code is not None and self.place is not None:
            self.free.append(self.place)
            self.place = None
            if self.log:
                self.log.close()
        return code

    def stop(self) -> None:
        self.process.terminate()


def job_environments(asked: int | None, told: list[tuple[str, str]]) -> list[dict[str, str]]:
    """The environment of each job that runs at the same time: its own GPUs, or its share of the cores.

    As many as `asked` for (`n_jobs=`), else as the GPUs suffice for; on a CPU one. `told` are the words `devices` and
    `accelerator` of every job.
    """
    import torch

    if asked is not None and asked < 1:
        raise ValueError(f"n_jobs={asked}: choose 1 or more")
    devices = [int(count) for count, _ in told if str(count).isdigit()]
    visible = [] if any(accelerator == "cpu" for _, accelerator in told) else visible_gpus(torch.cuda.device_count())
    each = max(devices, default=1)
    if not visible:
        count = asked or 1
        threads = max(1, count_cpu_cores() // (count * each))
        return [{"OMP_NUM_THREADS": str(threads)} if count > 1 else {} for _ in range(count)]
    if asked is None and not devices:
        return [{}]  # devices=auto: one job takes all
    count = asked or len(visible) // each
    if not 0 < count * each <= len(visible):
        raise ValueError(f"n_jobs={count} devices={each}: there are {len(visible)} GPUs")
    return [{"CUDA_VISIBLE_DEVICES": ",".join(visible[i * each : (i + 1) * each])} for i in range(count)]


def visible_gpus(count: int) -> list[str]:
    """Their names as CUDA_VISIBLE_DEVICES has them."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    return told.split(",")[:count] if told else [str(i) for i in range(count)]
