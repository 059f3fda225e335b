"""Run the jobs of a sweep on a Ray cluster."""

import os
from dataclasses import dataclass
from pathlib import Path

from sdft.runs.terminal import describe_error, print_text
from sdft.sweeps.jobs import Job
from sdft.sweeps.launchers.remote_command import MAX_QUEUED_JOBS, RemoteCommand, build_remote_command, require_package


@dataclass
class Ray:
    """Jobs on the Ray cluster at `address`, or on a local one (null), each with `cpus` cores and `devices` GPUs."""

    address: str | None = None
    cpus: float = 1
    n_jobs: int | None = None
    writes_logs, receives_sigint = True, False

    def prepare(self, folder: Path, configs: list) -> None:
        require_package("ray")
        if multi_node := [cfg.num_nodes for cfg in configs if cfg.num_nodes > 1]:
            raise ValueError(
                f"num_nodes={multi_node[0]}: launcher=ray runs a job on one machine; choose launcher=submitit"
            )
        import ray

        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        quiet = {"log_to_driver": False, "include_dashboard": False, "logging_level": "ERROR"}
        try:
            ray.init(self.address, ignore_reinit_error=True, **quiet)
        except ConnectionError as error:
            raise ValueError(f"launcher.address={self.address}: {describe_error(error)}") from None
        devices = [int(cfg.devices) if str(cfg.devices).isdigit() else 1 for cfg in configs]
        gpus = max(devices) if ray.cluster_resources().get("GPU") and configs[0].accelerator != "cpu" else 0
        self.slots = self.n_jobs or MAX_QUEUED_JOBS
        self.remote = ray.remote(num_cpus=self.cpus, num_gpus=gpus, max_retries=0)(run_remote_command)

    def start(self, job: Job) -> "RayJob":
        return RayJob(self.remote.remote(build_remote_command(job)))


def run_remote_command(command: RemoteCommand) -> int:
    return command()


class RayJob:
    def __init__(self, reference):
        self.reference = reference

    def exit_code(self) -> int | None:
        import ray

        if not ray.wait([self.reference], timeout=0)[0]:
            return None
        try:
            return ray.get(self.reference)
        except ray.exceptions.RayError as error:
            print_text(f"           {describe_error(error, last=True)}", flush=True)
            return 1

    def stop(self) -> None:
        import ray

        ray.cancel(self.reference, force=True)
