"""Run the jobs of a sweep in processes on this machine, each with its own GPUs or CPU cores."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from sdft.distributed import count_cpu_cores, exit_with_parent
from sdft.sweeps.jobs import LOG_FILE, Job


@dataclass
class Local:
    """Processes on this machine, `n_jobs` at a time, each with its own GPUs or CPU cores."""

    n_jobs: int | None = None
    receives_sigint = True

    def prepare(self, folder: Path, configs: list) -> None:
        if multi_node := [cfg.num_nodes for cfg in configs if cfg.num_nodes > 1]:
            raise ValueError(f"num_nodes={multi_node[0]}: launcher=local runs on one machine; choose launcher=submitit")
        self.free = job_environments(self.n_jobs, [(cfg.devices, cfg.accelerator) for cfg in configs])
        self.slots, self.writes_logs = len(self.free), len(self.free) > 1

    def start(self, job: Job):
        return LocalJob(job, self.free, self.writes_logs)


class LocalJob:
    """A job in a local process; it takes a free environment and returns it when it ends."""

    def __init__(self, job: Job, free: list[dict[str, str]], writes_logs: bool):
        command, self.free, self.environment = job.build_command(), free, free.pop(0)
        self.log = open(job.folder / LOG_FILE, "a") if writes_logs else None  # noqa: SIM115
        output = {"stdout": self.log, "stderr": subprocess.STDOUT} if writes_logs else {}
        self.process = subprocess.Popen(
            command, env=os.environ | self.environment, preexec_fn=exit_with_parent(os.getpid()), **output
        )

    def exit_code(self) -> int | None:
        code = self.process.poll()
        if code is not None and self.environment is not None:
            self.free.append(self.environment)
            self.environment = None
            if self.log:
                self.log.close()
        return code

    def stop(self) -> None:
        self.process.terminate()


def job_environments(n_jobs: int | None, hardware: list[tuple[str, str]]) -> list[dict[str, str]]:
    """The environment variables of each concurrent job, which assign GPUs or CPU threads to it.

    There are `n_jobs` of them; by default as many as the GPUs suffice for, and one on a CPU. `hardware` has the options `devices`
    and `accelerator` of every job.
    """
    import torch

    if n_jobs is not None and n_jobs < 1:
        raise ValueError(f"n_jobs={n_jobs}: choose 1 or more")
    devices = [int(count) for count, _ in hardware if str(count).isdigit()]
    visible = (
        [] if any(accelerator == "cpu" for _, accelerator in hardware) else visible_gpus(torch.cuda.device_count())
    )
    per_job = max(devices, default=1)
    if not visible:
        count = n_jobs or 1
        threads = max(1, count_cpu_cores() // (count * per_job))
        return [{"OMP_NUM_THREADS": str(threads)} if count > 1 else {} for _ in range(count)]
    if n_jobs is None and not devices:
        return [{}]  # devices=auto: one job takes all GPUs
    count = n_jobs or len(visible) // per_job
    if not 0 < count * per_job <= len(visible):
        raise ValueError(f"n_jobs={count} devices={per_job}: needs more than the {len(visible)} available GPUs")
    return [{"CUDA_VISIBLE_DEVICES": ",".join(visible[i * per_job : (i + 1) * per_job])} for i in range(count)]


def visible_gpus(count: int) -> list[str]:
    """Names of the first `count` GPUs, as in CUDA_VISIBLE_DEVICES."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return names.split(",")[:count] if names else [str(i) for i in range(count)]
