"""Run the jobs of a sweep on a SLURM cluster through submitit."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdft.distributed import count_gpus
from sdft.runs.terminal import describe_error, print_text
from sdft.sweeps.jobs import Job
from sdft.sweeps.launchers.remote_command import MAX_QUEUED_JOBS, build_remote_command, require_package


@dataclass
class Submitit:
    """Jobs on a SLURM cluster (`cluster=slurm`), or in submitit's emulation on this machine (`local`).

    `timeout_min` is the time limit of a job, `slurm` has further options of `sbatch`, such as partition or account. Nodes, tasks
    and GPUs follow from the job's num_nodes and devices; `cpus` and `memory_gb` are those of one process, of one device.
    Preempted jobs are resubmitted, timed-out ones are not. Queued jobs outlive the sweep; the same command finds them again.
    """

    cluster: str = "slurm"
    timeout_min: int = 240
    cpus: int = 8
    memory_gb: int = 32
    n_jobs: int | None = None
    slurm: dict[str, Any] = field(default_factory=dict)
    writes_logs, receives_sigint = True, False

    def prepare(self, folder: Path, configs: list) -> None:
        require_package("submitit")
        import submitit

        no_timeout_requeue = {"slurm_max_num_timeout": 0} if self.cluster == "slurm" else {}
        try:
            self.executor = submitit.AutoExecutor(folder / "submitit", cluster=self.cluster, **no_timeout_requeue)
        except (RuntimeError, ValueError) as error:
            reason = describe_error(error)
            raise ValueError(f"launcher.cluster={self.cluster}: {reason}; choose slurm or local") from None
        hardware = {(cfg.num_nodes, cfg.devices, cfg.accelerator) for cfg in configs}
        if len(hardware) > 1:
            raise ValueError("launcher=submitit: give all jobs the same num_nodes, devices and accelerator")
        nodes, devices, accelerator = hardware.pop()
        self.tasks = int(devices) if str(devices).isdigit() else 1
        parameters = {
            "timeout_min": self.timeout_min,
            "cpus_per_task": self.cpus,
            "mem_gb": self.memory_gb * self.tasks,
        }
        if self.cluster == "slurm":
            self.slots = self.n_jobs or MAX_QUEUED_JOBS
            parameters |= {"nodes": nodes, "tasks_per_node": self.tasks, "slurm_srun_args": ["--kill-on-bad-exit"]}
            parameters["slurm_additional_parameters"] = dict(self.slurm)
            self.tasks *= nodes
        else:
            self.slots = self.n_jobs or 1
        if accelerator != "cpu":
            parameters["gpus_per_node"] = self.tasks // nodes if self.cluster == "slurm" else count_gpus()
        self.executor.update_parameters(**parameters)

    def start(self, job: Job) -> "SubmittedJob":
        id_file = self.executor.folder / f"job-{job.folder.name}"
        if self.cluster == "slurm" and id_file.is_file():
            from submitit import SlurmJob

            queued = SlurmJob(self.executor.folder, id_file.read_text(), range(self.tasks))
            if job.is_finished() or not queued.done(force_check=True):
                return SubmittedJob(queued, job, self.tasks)
        try:
            submitted = self.executor.submit(build_remote_command(job))
        except Exception as error:  # submitit's exceptions have no common base class
            raise ValueError(f"launcher=submitit: {describe_error(error, last=True)}; see launcher.slurm") from error
        id_file.write_text(submitted.job_id)
        return SubmittedJob(submitted, job, self.tasks)


class SubmittedJob:
    """A job submitted through submitit, with one or more tasks."""

    def __init__(self, submitted, job: Job, tasks: int):
        self.submitted, self.job, self.tasks = submitted, job, [submitted.task(number) for number in range(tasks)]

    def exit_code(self) -> int | None:
        if self.job.is_finished():
            return 0
        if not self.submitted.done():
            return None
        failed = [error for error in (task.exception() for task in self.tasks) if error]
        if failed:
            print_text(f"           {type(failed[0]).__name__}: {describe_error(failed[0], last=True)}", flush=True)
        return int(bool(failed))

    def stop(self) -> None:
        self.submitted.cancel()
