"""Jobs of a sweep on a SLURM cluster, through submitit."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdft.sweeps.jobs import Job
from sdft.sweeps.launchers.remote_command import MAX_QUEUED_JOBS, build_remote_command, require_package


@dataclass
class Submitit:
    """Jobs on a SLURM cluster (`cluster=slurm`), or as it would do it on this machine (`local`).

    `timeout_min` is each job's time, `slurm` holds more of what `sbatch` takes, such as partition or account. Machines, tasks and
    GPUs follow from the job's own num_nodes and devices. What the cluster interrupts is sent again, but not what needs longer
    than `timeout_min`; jobs in the queue outlive the sweep, which finds them again.
    """

    cluster: str = "slurm"
    timeout_min: int = 240
    cpus: int = 8
    memory_gb: int = 32
    n_jobs: int | None = None
    slurm: dict[str, Any] = field(default_factory=dict)
    writes_logs, shares_terminal = True, False

    def prepare(self, folder: Path, configs: list) -> None:
        require_package("submitit")
        import submitit

        again = {"slurm_max_num_timeout": 0} if self.cluster == "slurm" else {}
        try:
            self.executor = submitit.AutoExecutor(folder / "submitit", cluster=self.cluster, **again)
        except (RuntimeError, ValueError) as error:
            why = str(error).splitlines()[0]
            raise ValueError(f"launcher.cluster={self.cluster}: {why}; choose slurm or local") from None
        shapes = {(cfg.num_nodes, cfg.devices, cfg.accelerator) for cfg in configs}
        if len(shapes) > 1:
            raise ValueError("launcher=submitit: give all jobs the same num_nodes, devices and accelerator")
        nodes, devices, accelerator = shapes.pop()
        self.tasks = int(devices) if str(devices).isdigit() else 1
        wanted = {"timeout_min": self.timeout_min, "cpus_per_task": self.cpus, "mem_gb": self.memory_gb}
        if self.cluster == "slurm":
            self.slots = self.n_jobs or MAX_QUEUED_JOBS
            wanted |= {"nodes": nodes, "tasks_per_node": self.tasks, "slurm_srun_args": ["--kill-on-bad-exit"]}
            wanted["slurm_additional_parameters"] = dict(self.slurm)
            self.tasks *= nodes
        else:
            self.slots = self.n_jobs or 1
        if accelerator != "cpu":
            wanted["gpus_per_node"] = self.tasks // nodes if self.cluster == "slurm" else count_gpus()
        self.executor.update_parameters(**wanted)

    def start(self, job: Job) -> "SubmittedJob":
        note = self.executor.folder / f"job-{job.folder.name}"
        if self.cluster == "slurm" and note.is_file():
            from submitit import SlurmJob

            queued = SlurmJob(self.executor.folder, note.read_text(), range(self.tasks))
            if job.is_finished() or not queued.done(force_check=True):
                return SubmittedJob(queued, job, self.tasks)
        try:
            sent = self.executor.submit(build_remote_command(job))
        except Exception as error:  # submitit's own kinds, which share no base
            raise ValueError(f"launcher=submitit: {str(error).strip().splitlines()[-1]}; see launcher.slurm") from error
        note.write_text(sent.job_id)
        return SubmittedJob(sent, job, self.tasks)


def count_gpus() -> int:
    import torch

    return torch.cuda.device_count()


class SubmittedJob:
    """A job that submitit has sent, of one task or more."""

    def __init__(self, sent, job: Job, tasks: int):
        self.sent, self.job, self.tasks = sent, job, [sent.task(number) for number in range(tasks)]

    def exit_code(self) -> int | None:
        if self.job.is_finished():
            return 0
        if not self.sent.done():
            return None
        failed = [error for error in (task.exception() for task in self.tasks) if error]
        if failed:
            print(f"         {type(failed[0]).__name__}: {str(failed[0]).strip().splitlines()[-1]}", flush=True)
        return int(bool(failed))

    def stop(self) -> None:
        self.sent.cancel()
