"""Jobs of a sweep in joblib's pool of processes."""

from dataclasses import dataclass
from pathlib import Path

from sdft.jobs import Job
from sdft.launchers.call import Future, call, need


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
