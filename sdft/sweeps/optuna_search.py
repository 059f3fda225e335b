"""A sweep that looks for the best words: Optuna proposes each job's, learns from its scores, and stops what leads nowhere."""

import csv
import json
import math
from pathlib import Path

from sdft.evaluation.statistics import flatten_scores, orient_score
from sdft.runs.evaluation_history import EvaluationHistory
from sdft.sweeps.jobs import Job
from sdft.sweeps.results import LOWER_IS_BETTER, metric_info, read_finished_run

JOURNAL_FILE = "study.log"  # Optuna's journal: what was tried and how it went, written line by line
SAMPLERS = ("tpe", "random")
RANGE_DISTRIBUTIONS = (
    "",
    "uniform",
    "int_uniform",
    "q_uniform",
    "log_uniform_values",
)  # of ranges in files of `wandb sweep`
STARTUP_TRIALS = 4  # jobs that are never stopped early


class OptunaSearch:
    """Up to `trials` jobs with `fixed` words and those that Optuna picks from `space`.

    `objectives` are scores by name, and whether higher is better. One alone lets `prune` stop a job that is worse at some step
    than half of the others were there; of several, the Pareto front is what counts.
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
        known = len(journal.read_text().splitlines()) if journal.is_file() else 0
        self.folder, self.space, self.fixed, self.objectives = folder, space, fixed, objectives
        self.total, self.prune, self.failed = trials, prune and len(objectives) == 1, []
        self.optuna, self.trials, self.reported, self.pruned_jobs = optuna, {}, {}, set()
        self.study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(journal), lock_obj=JournalFileOpenLock(str(journal)))),
            study_name="sweep",
            load_if_exists=True,
            directions=["maximize" if up else "minimize" for up in objectives.values()],
            sampler=build_sampler(optuna, sampler, seed, known),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_min_trials=STARTUP_TRIALS),
        )
        states = optuna.trial.TrialState
        before = self.study.trials
        self.interrupted = [t for t in before if t.state == states.RUNNING]
        self.done = sum(t.state in (states.COMPLETE, states.PRUNED) for t in before)
        tried_again = {t.user_attrs.get("again") for t in before}
        for trial in before:
            if trial.state == states.FAIL and trial.number not in tried_again:
                self.study.enqueue_trial(trial.params, user_attrs={"again": trial.number})
        self.left = trials - self.done - len(self.interrupted)

    def next_job(self) -> Job | None:
        """A job that was interrupted, else one with new words."""
        if self.interrupted:
            known = self.interrupted.pop(0)
            trial = self.optuna.trial.Trial(self.study, known._trial_id)
            words = known.params
            job = self.job(trial.number, words)
            self.trials[job] = trial
            if job.is_finished():
                self.record_end(job, 0)
                return self.next_job()
            return job
        if self.left <= 0:
            return None
        self.left -= 1
        trial = self.study.ask(self.space)
        job = self.job(trial.number, trial.params)
        self.trials[job] = trial
        return job

    def job(self, number: int, words: dict) -> Job:
        picked = [f"{key}={format_parameter(value)}" for key, value in words.items()]
        return Job(self.folder / str(number), [*self.fixed, *picked], " ".join(picked))

    def should_stop(self, job: Job) -> bool:
        """Tell Optuna what the job has scored so far, and ask it."""
        if not self.prune:
            return False
        trial, seen = self.trials[job], self.reported.setdefault(job, set())
        new = {
            s: v for s, v in read_intermediate_scores(job.folder, next(iter(self.objectives))).items() if s not in seen
        }
        for step, value in new.items():
            seen.add(step)
            trial.report(value, step)
        if new and trial.should_prune():
            self.pruned_jobs.add(job)
        return job in self.pruned_jobs

    def record_end(self, job: Job, code: int) -> str:
        trial, states = self.trials.pop(job), self.optuna.trial.TrialState
        if job in self.pruned_jobs and not job.is_finished():
            self.study.tell(trial, state=states.PRUNED)
            return "pruned"
        values = self.values(job) if job.is_finished() else None
        if values is None:
            self.study.tell(trial, state=states.FAIL)
            self.failed.append(job)
            return "failed"
        self.study.tell(trial, values)
        return "finished"

    def values(self, job: Job) -> list[float] | None:
        """Of every objective; None when one could not be computed."""
        run = read_finished_run(job.folder)
        if unknown := [name for name in self.objectives if name not in run.costs and name not in run.scores]:
            there = ", ".join([*run.scores, "validation/loss"])
            raise ValueError(f"objectives={unknown[0]}: the jobs have {there}; choose among them, or give metrics=…")
        told = metric_info(run)
        for name, up in self.objectives.items():
            if name in told and told[name]["higher_is_better"] != up:
                raise ValueError(
                    f"objectives={name}: {'lower' if up else 'higher'} is better, and this search wants the other"
                )
        values = [run.value(name) for name in self.objectives]
        return values if all(value is not None and math.isfinite(value) for value in values) else None

    def finished_folders(self) -> list[Path]:
        """Folders of all jobs that ended with a score."""
        complete = [t for t in self.study.trials if t.state == self.optuna.trial.TrialState.COMPLETE]
        return [self.folder / str(trial.number) for trial in complete]

    def summary_lines(self) -> list[str]:
        """What was found, in lines."""
        if not self.finished_folders():
            return []
        states = [trial.state.name for trial in self.study.trials]
        pruned = f", {states.count('PRUNED')} stopped early" if "PRUNED" in states else ""
        lines = [f"search   {states.count('COMPLETE')} jobs finished{pruned}, in {self.folder / JOURNAL_FILE}"]
        best = self.study.best_trials if len(self.objectives) > 1 else [self.study.best_trial]
        for trial in sorted(
            best, key=lambda trial: -orient_score(trial.values[0], next(iter(self.objectives.values())))
        ):
            scores = ", ".join(f"{name} {value:.4f}" for name, value in zip(self.objectives, trial.values, strict=True))
            words = " ".join(f"{key}={format_parameter(value)}" for key, value in trial.params.items())
            lines.append(f"{'pareto' if len(self.objectives) > 1 else 'found':<8} {words}: {scores}")
        return lines


def build_sampler(optuna, name: str, seed: int, known: int):
    """A sampler; one that goes on after a kill, with `known` lines in the journal, must not propose the first words again."""
    if name not in SAMPLERS:
        raise ValueError(f"sampler={name}: choose one of {', '.join(SAMPLERS)}")
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed + known)
    return optuna.samplers.TPESampler(seed=seed + known, n_startup_trials=2 * STARTUP_TRIALS, multivariate=True)


def format_parameter(value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "null" if value is None else str(value)


def read_intermediate_scores(folder: Path, name: str) -> dict[int, float]:
    """A score by step, as far as a run has come: of its evaluations, or its losses at fixed noise."""
    if name == "validation/loss":
        file = folder / "metrics.csv"
        if not file.is_file():
            return {}
        with open(file, encoding="utf-8") as opened:
            rows = [row for row in csv.DictReader(opened) if row.get(name)]
        return {int(row["step"]): float(row[name]) for row in rows if int(row["step"])}
    try:
        entries = EvaluationHistory(folder / "evaluation").entries()
    except json.JSONDecodeError:
        return {}
    told = {entry["step"]: flatten_scores(entry["scores"]).get(name, {"value": None})["value"] for entry in entries}
    return {step: value for step, value in told.items() if step and value is not None}


def objective_directions(names: list[str], goals: dict[str, str]) -> dict[str, bool]:
    """Scores and whether higher is better: as a sweep's file says, else as is known of the score."""
    known = {name: name.rpartition("/")[2] not in LOWER_IS_BETTER and name not in LOWER_IS_BETTER for name in names}
    return {name: goals[name] == "maximize" if name in goals else up for name, up in known.items()}


def parse_parameter_distribution(told: dict):
    """A parameter of a `wandb sweep` file as Optuna has it; None for a single value."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if "value" in told:
        return None
    if "values" in told:
        return CategoricalDistribution(told["values"])
    if not {"min", "max"} <= told.keys() or told.get("distribution", "") not in RANGE_DISTRIBUTIONS:
        raise ValueError(
            f"{told}: give values, or min and max with one of the distributions {', '.join(RANGE_DISTRIBUTIONS[1:])}"
        )
    low, high, kind = told["min"], told["max"], told.get("distribution", "")
    log = kind == "log_uniform_values"
    if kind.startswith("int") or (not kind and isinstance(low, int) and isinstance(high, int)):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log, step=told.get("q"))


def parse_override_distribution(override):
    """A word with several values, as Hydra writes them, as Optuna has it: interval(a,b), tag(log,…), range, choices."""
    from hydra.core.override_parser.types import IntervalSweep
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if isinstance(value, IntervalSweep):
        log = "log" in value.tags
        if isinstance(value.start, int) and isinstance(value.end, int):
            return IntDistribution(value.start, value.end, log=log)
        return FloatDistribution(float(value.start), float(value.end), log=log)
    return CategoricalDistribution([*override.sweep_string_iterator()])
