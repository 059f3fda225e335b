"""Search for the best options with Optuna: it proposes each job's, updates on its scores, and prunes unpromising jobs."""

import csv
import json
import math
from pathlib import Path

from sdft.evaluation.statistics import flatten_scores, orient_score
from sdft.runs.evaluation_history import EvaluationHistory
from sdft.runs.terminal import print_text
from sdft.sweeps.jobs import Job
from sdft.sweeps.results import LOWER_IS_BETTER, metric_info, read_finished_run

JOURNAL_FILE = "study.log"  # Optuna's journal of trials, one line per event
SAMPLERS = ("tpe", "random")
RANGE_DISTRIBUTIONS = (  # of ranges in `wandb sweep` files
    "",
    "uniform",
    "int_uniform",
    "q_uniform",
    "log_uniform_values",
)
STARTUP_TRIALS = 4  # finished jobs before pruning begins


class OptunaSearch:
    """Up to `trials` jobs with the `fixed` overrides and values that Optuna samples from `space`.

    `objectives` maps scores to whether higher is better. With one objective, `prune` stops a job whose score at some step is
    worse than the median of the others at that step; several give a Pareto front.
    """

    def __init__(
        self,
        folder: Path,
        space: dict,
        fixed: list[str],
        objectives: dict[str, bool],
        trials: int,
        sampler: str = "tpe",
        prune: bool = True,
        seed: int = 0,
    ):
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        journal = (folder / JOURNAL_FILE).absolute()
        journal_lines = len(journal.read_text().splitlines()) if journal.is_file() else 0
        self.folder, self.space, self.fixed, self.objectives = folder, space, fixed, objectives
        self.total, self.prune, self.failed = trials, prune and len(objectives) == 1, []
        self.optuna, self.trials, self.reported, self.pruned_jobs = optuna, {}, {}, set()
        self.storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=JournalFileOpenLock(str(journal))))
        self.study = optuna.create_study(
            storage=self.storage,
            study_name="sweep",
            load_if_exists=True,
            directions=["maximize" if higher_is_better else "minimize" for higher_is_better in objectives.values()],
            sampler=build_sampler(optuna, sampler, seed, journal_lines),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_min_trials=STARTUP_TRIALS),
        )
        states = optuna.trial.TrialState
        previous = self.study.trials
        self.interrupted = [t for t in previous if t.state == states.RUNNING]
        self.completed = sum(t.state in (states.COMPLETE, states.PRUNED) for t in previous)
        retried = {t.user_attrs.get("again") for t in previous}
        for trial in previous:
            if trial.state == states.FAIL and trial.number not in retried:
                self.study.enqueue_trial(trial.params, user_attrs={"again": trial.number})
        self.remaining = trials - self.completed - len(self.interrupted)

    def next_job(self) -> Job | None:
        """An interrupted job if there is one, else a new one."""
        if self.interrupted:
            frozen = self.interrupted.pop(0)
            trial = self.load_trial(frozen.number)
            job = self.build_job(trial.number, frozen.params)
            self.trials[job] = trial
            if job.is_finished():
                self.record_end(job, 0)
                return self.next_job()
            return job
        if self.remaining <= 0:
            return None
        self.remaining -= 1
        trial = self.study.ask(self.space)
        job = self.build_job(trial.number, trial.params)
        self.trials[job] = trial
        return job

    def load_trial(self, number: int):
        """The running trial with this number, to which more scores can be reported."""
        study_id = self.storage.get_study_id_from_name(self.study.study_name)
        trial_id = self.storage.get_trial_id_from_study_id_trial_number(study_id, number)
        return self.optuna.trial.Trial(self.study, trial_id)

    def build_job(self, number: int, parameters: dict) -> Job:
        sampled = [f"{key}={format_parameter(value)}" for key, value in parameters.items()]
        return Job(self.folder / str(number), [*self.fixed, *sampled], " ".join(sampled))

    def should_stop(self, job: Job) -> bool:
        """Report the job's new intermediate scores to Optuna and return whether it prunes the job."""
        if not self.prune:
            return False
        trial, reported = self.trials[job], self.reported.setdefault(job, set())
        scores = read_intermediate_scores(job.folder, next(iter(self.objectives)))
        new = {step: value for step, value in scores.items() if step not in reported}
        for step, value in new.items():
            reported.add(step)
            trial.report(value, step)
        if new and trial.should_prune():
            self.pruned_jobs.add(job)
        return job in self.pruned_jobs

    def record_end(self, job: Job, code: int) -> str:
        trial, states = self.trials.pop(job), self.optuna.trial.TrialState
        if job in self.pruned_jobs and not job.is_finished():
            self.study.tell(trial, state=states.PRUNED)
            return "pruned"
        values = self.objective_values(job) if job.is_finished() else None
        if values is None:
            self.study.tell(trial, state=states.FAIL)
            self.failed.append(job)
            return "failed"
        self.study.tell(trial, values)
        return "finished"

    def objective_values(self, job: Job) -> list[float] | None:
        """The value of every objective; None if one is missing or NaN/Inf."""
        run = read_finished_run(job.folder)
        if unknown := [name for name in self.objectives if name not in run.costs and name not in run.scores]:
            available = ", ".join([*run.scores, "validation/loss"])
            raise ValueError(f"objectives={unknown[0]}: not a score of the jobs; choose {available}, or set metrics=…")
        info = metric_info(run)
        for name, higher_is_better in self.objectives.items():
            if name in info and info[name]["higher_is_better"] != higher_is_better:
                better, goal = ("lower", "maximize") if higher_is_better else ("higher", "minimize")
                raise ValueError(f"objectives={name}: {better} is better, but the goal of this search is to {goal} it")
        values = [run.value(name) for name in self.objectives]
        return values if all(value is not None and math.isfinite(value) for value in values) else None

    def finished_folders(self) -> list[Path]:
        """Folders of all jobs that ended with a score."""
        complete = [t for t in self.study.trials if t.state == self.optuna.trial.TrialState.COMPLETE]
        return [self.folder / str(trial.number) for trial in complete]

    def print_summary(self) -> None:
        print_text(*self.summary_lines())

    def summary_lines(self) -> list[str]:
        """Lines with the number of trials and the best one, or the Pareto front."""
        if not self.finished_folders():
            return []
        states = [trial.state.name for trial in self.study.trials]
        pruned = f", {states.count('PRUNED')} pruned" if "PRUNED" in states else ""
        lines = [f"search     {states.count('COMPLETE')} jobs finished{pruned}, in {self.folder / JOURNAL_FILE}"]
        best = self.study.best_trials if len(self.objectives) > 1 else [self.study.best_trial]
        for trial in sorted(
            best, key=lambda trial: -orient_score(trial.values[0], next(iter(self.objectives.values())))
        ):
            scores = ", ".join(f"{name} {value:.4f}" for name, value in zip(self.objectives, trial.values, strict=True))
            options = " ".join(f"{key}={format_parameter(value)}" for key, value in trial.params.items())
            lines.append(f"{'pareto' if len(self.objectives) > 1 else 'optimum':<10} {options}: {scores}")
        return lines


def build_sampler(optuna, name: str, seed: int, journal_lines: int):
    """An Optuna sampler; `journal_lines` offsets the seed so that a resumed search does not repeat its first proposals."""
    if name not in SAMPLERS:
        raise ValueError(f"sampler={name}: choose one of {', '.join(SAMPLERS)}")
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed + journal_lines)
    return optuna.samplers.TPESampler(seed=seed + journal_lines, n_startup_trials=2 * STARTUP_TRIALS, multivariate=True)


def format_parameter(value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "null" if value is None else str(value)


def read_intermediate_scores(folder: Path, name: str) -> dict[int, float]:
    """A score by step so far, from the run's evaluations, or from `metrics.csv` for the validation loss."""
    if name == "validation/loss":
        file = folder / "metrics.csv"
        if not file.is_file():
            return {}
        with open(file, encoding="utf-8") as stream:
            rows = [row for row in csv.DictReader(stream) if row.get(name)]
        return {int(row["step"]): float(row[name]) for row in rows if int(row["step"])}
    try:
        entries = EvaluationHistory(folder / "evaluation").read_entries()
    except json.JSONDecodeError:
        return {}
    values = {entry["step"]: flatten_scores(entry["scores"]).get(name, {"value": None})["value"] for entry in entries}
    return {step: value for step, value in values.items() if step and value is not None}


def objective_directions(names: list[str], goals: dict[str, str]) -> dict[str, bool]:
    """Whether higher is better, by score: from the sweep file's `goals`, else from the score's name."""
    defaults = {name: name.rpartition("/")[2] not in LOWER_IS_BETTER and name not in LOWER_IS_BETTER for name in names}
    return {name: goals[name] == "maximize" if name in goals else default for name, default in defaults.items()}


def parse_parameter_distribution(spec: dict):
    """The Optuna distribution of a parameter in a `wandb sweep` file; None for a single value."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if "value" in spec:
        return None
    if "values" in spec:
        return CategoricalDistribution(spec["values"])
    if not {"min", "max"} <= spec.keys() or spec.get("distribution", "") not in RANGE_DISTRIBUTIONS:
        raise ValueError(
            f"{spec}: give values, or min and max with one of the distributions {', '.join(RANGE_DISTRIBUTIONS[1:])}"
        )
    low, high, kind = spec["min"], spec["max"], spec.get("distribution", "")
    log = kind == "log_uniform_values"
    if kind.startswith("int") or (not kind and isinstance(low, int) and isinstance(high, int)):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log, step=spec.get("q"))


def parse_override_distribution(override):
    """The Optuna distribution of a Hydra sweep override: interval(a,b), tag(log,…), range or choices."""
    from hydra.core.override_parser.types import IntervalSweep
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if isinstance(value, IntervalSweep):
        log = "log" in value.tags
        if isinstance(value.start, int) and isinstance(value.end, int):
            return IntDistribution(value.start, value.end, log=log)
        return FloatDistribution(float(value.start), float(value.end), log=log)
    return CategoricalDistribution([*override.sweep_string_iterator()])
