"""Where the jobs of a sweep run: in processes of this machine, in joblib's pool, on a SLURM cluster, or on a Ray cluster."""

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sdft.jobs import LOG, Job
from sdft.processes import end_with

MANY = 16  # jobs at a time, where a queue sorts them out


@dataclass
class Local:
    """Processes of this machine, `n_jobs` at a time, each with GPUs or cores of its own."""

    n_jobs: int | None = None

    def prepare(self, folder: Path, configs: list) -> None:
        self.free = usable(self.n_jobs, [(cfg.devices, cfg.accelerator) for cfg in configs])
        self.slots, self.logs = len(self.free), len(self.free) > 1

    def start(self, job: Job):
        return Process(job, self.free, self.logs)


class Process:
    """A job in a process of this machine; of several, each writes to its own log."""

    def __init__(self, job: Job, free: list[dict[str, str]], logs: bool):
        command, self.free, self.place = job.cleared(), free, free.pop(0)
        self.log = open(job.folder / LOG, "w") if logs else None  # noqa: SIM115
        told = {"stdout": self.log, "stderr": subprocess.STDOUT} if logs else {}
        before = partial(end_with, os.getpid())
        self.process = subprocess.Popen(command, env=os.environ | self.place, preexec_fn=before, **told)

    def code(self) -> int | None:
        code = self.process.poll()
        if code is not None and self.place is not None:
            self.free.append(self.place)
            self.place = None
            if self.log:
                self.log.close()
        return code

    def stop(self) -> None:
        self.process.terminate()


def usable(asked: int | None, told: list[tuple[str, str]]) -> list[dict[str, str]]:
    """The environment of each job that runs at the same time: its own GPUs, or its share of the cores.

    As many as `asked` for (`n_jobs=`), else as the GPUs suffice for; on a CPU one. `told` are the words `devices` and
    `accelerator` of every job.
    """
    import torch

    if asked is not None and asked < 1:
        raise ValueError(f"n_jobs={asked}: choose 1 or more")
    devices = [int(count) for count, _ in told if str(count).isdigit()]
    visible = [] if any(accelerator == "cpu" for _, accelerator in told) else gpus(torch.cuda.device_count())
    each = max(devices, default=1)
    if not visible:
        count = asked or 1
        threads = max(1, (os.cpu_count() or 1) // (count * each))
        return [{"OMP_NUM_THREADS": str(threads)} if count > 1 else {} for _ in range(count)]
    if asked is None and not devices:
        return [{}]  # devices=auto: one job takes all
    count = asked or len(visible) // each
    if not 0 < count * each <= len(visible):
        raise ValueError(f"n_jobs={count} devices={each}: there are {len(visible)} GPUs")
    return [{"CUDA_VISIBLE_DEVICES": ",".join(visible[i * each : (i + 1) * each])} for i in range(count)]


def gpus(count: int) -> list[str]:
    """Their names as CUDA_VISIBLE_DEVICES has them."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    return told.split(",")[:count] if told else [str(i) for i in range(count)]


@dataclass
class Call:
    """A command to be run elsewhere, in the same folder; its output goes to `log`."""

    command: list[str]
    log: str
    home: str

    def __call__(self) -> int:
        with open(os.path.join(self.home, self.log), "a") as log:
            told = {"stdout": log, "stderr": subprocess.STDOUT, "preexec_fn": partial(end_with, os.getpid())}
            return subprocess.run(self.command, cwd=self.home, **told).returncode

    def checkpoint(self):
        """What submitit sends again, from its beginning, when a cluster takes the machine away."""
        from submitit.helpers import DelayedSubmission

        folder = os.path.join(self.home, os.path.dirname(self.log))
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        return DelayedSubmission(self)


def call(job: Job) -> Call:
    return Call(job.cleared(), str(job.folder / LOG), os.getcwd())


def need(package: str, extra: str) -> None:
    if find_spec(package) is None:
        raise ValueError(f'launcher={package}: not installed; pip install "sdft[{extra}]", or pip install {package}')


class Future:
    """A job in an executor."""

    def __init__(self, future):
        self.future = future

    def code(self) -> int | None:
        if not self.future.done():
            return None
        try:
            return self.result()
        except Exception as error:  # whatever happened to it there
            print(f"         {type(error).__name__}: {str(error).strip().splitlines()[-1:] or ''}", flush=True)
            return 1

    def result(self) -> int:
        return self.future.result()

    def stop(self) -> None:
        self.future.cancel()


class Sent(Future):
    """A job that submitit has sent, of one task or more."""

    def result(self) -> int:
        return max(self.future.results(), key=abs)


@dataclass
class Joblib:
    """joblib's pool of `n_jobs` processes (-1: one for each core)."""

    n_jobs: int | None = None
    logs = True

    def prepare(self, folder: Path, configs: list) -> None:
        need("joblib", "sweeps")
        from joblib import effective_n_jobs
        from joblib.externals.loky import get_reusable_executor

        self.slots = effective_n_jobs(self.n_jobs or 1)
        self.pool = get_reusable_executor(max_workers=self.slots)

    def start(self, job: Job) -> Future:
        return Future(self.pool.submit(call(job)))


@dataclass
class Submitit:
    """Jobs on a SLURM cluster (`cluster=slurm`), or as it would do it on this machine (`local`).

    `minutes` is each job's time, `slurm` holds more of what `sbatch` takes, such as partition or account. Machines, tasks and
    GPUs follow from the job's own num_nodes and devices. What the cluster interrupts is sent again; jobs in the queue outlive
    the sweep, which finds them again.
    """

    cluster: str = "slurm"
    minutes: int = 240
    cpus: int = 8
    memory_gb: int = 32
    n_jobs: int | None = None
    slurm: dict[str, Any] = field(default_factory=dict)
    logs = True

    def prepare(self, folder: Path, configs: list) -> None:
        need("submitit", "sweeps")
        import submitit

        try:
            self.executor = submitit.AutoExecutor(folder / "submitit", cluster=self.cluster)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"launcher.cluster={self.cluster}: {str(error).splitlines()[0]}; choose slurm or local"
            ) from None
        self.slots = self.n_jobs or MANY
        shapes = {(cfg.num_nodes, cfg.devices, cfg.accelerator) for cfg in configs}
        if len(shapes) > 1:
            raise ValueError("launcher=submitit: give all jobs the same num_nodes, devices and accelerator")
        nodes, devices, accelerator = shapes.pop()
        each = int(devices) if str(devices).isdigit() else 1
        wanted = {"timeout_min": self.minutes, "cpus_per_task": self.cpus, "mem_gb": self.memory_gb}
        if self.cluster == "slurm":
            wanted |= {"nodes": nodes, "tasks_per_node": each} | {f"slurm_{key}": v for key, v in self.slurm.items()}
        if accelerator != "cpu":
            wanted["gpus_per_node"] = each if self.cluster == "slurm" else 0
        self.executor.update_parameters(**wanted)

    def start(self, job: Job) -> Sent:
        note = self.executor.folder / f"job-{job.folder.name}"
        if self.cluster == "slurm" and note.is_file():
            from submitit import SlurmJob

            queued = SlurmJob(self.executor.folder, note.read_text())
            if not queued.done(force_check=True):
                return Sent(queued)
        sent = self.executor.submit(call(job))
        note.write_text(sent.job_id)
        return Sent(sent)


@dataclass
class Ray:
    """Jobs on a Ray cluster at `address`, or on one of this machine alone (null), each with `cpus` and its devices' GPUs."""

    address: str | None = None
    cpus: float = 1
    n_jobs: int | None = None
    logs = True

    def prepare(self, folder: Path, configs: list) -> None:
        need("ray", "sweeps")
        import ray

        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(
            self.address, ignore_reinit_error=True, log_to_driver=False, include_dashboard=False, logging_level="ERROR"
        )
        devices = [int(cfg.devices) if str(cfg.devices).isdigit() else 1 for cfg in configs]
        gpus = max(devices) if ray.cluster_resources().get("GPU") and configs[0].accelerator != "cpu" else 0
        self.slots = self.n_jobs or MANY
        self.remote = ray.remote(num_cpus=self.cpus, num_gpus=gpus, max_retries=0)(run)

    def start(self, job: Job):
        return RayJob(self.remote.remote(call(job)))


def run(call: Call) -> int:
    return call()


class RayJob:
    def __init__(self, reference):
        self.reference = reference

    def code(self) -> int | None:
        import ray

        if not ray.wait([self.reference], timeout=0)[0]:
            return None
        try:
            return ray.get(self.reference)
        except ray.exceptions.RayError as error:
            print(f"         {type(error).__name__}", flush=True)
            return 1

    def stop(self) -> None:
        import ray

        ray.cancel(self.reference, force=True)
