"""Jobs of a sweep on a SLURM cluster, through submitit."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdft.jobs import Job
from sdft.launchers.call import MANY, Future, call, need


class Sent(Future):
    """A job that submitit has sent, of one task or more."""

    def result(self) -> int:
        return max(self.future.results(), key=abs)


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
