"""Log a sweep to W&B: a separate run in the group of its jobs, with the tables, the page and the verdict."""

import json
import os
from pathlib import Path
from uuid import uuid4

from sdft.runs.files import atomic_write, read_json
from sdft.runs.metadata import read_record
from sdft.runs.terminal import print_text
from sdft.sweeps.compare import choose_metric, find_best_setting, recommend_setting
from sdft.sweeps.results import (
    FinishedRun,
    Setting,
    comparable_metrics,
    group_by_setting,
    read_finished_runs,
    table_columns,
)

WANDB_RUN_FILE = "wandb.json"  # the id of the sweep's W&B run, for resuming it


def log_sweep_summary(finished: list[Path], jobs: int, folder: Path, name: str, preferred: str | None = None) -> None:
    """Log the finished jobs (of `jobs` in total) and `folder/compare.html` to the jobs' W&B project.

    Does nothing if no job was logged to W&B. A second call resumes the same W&B run.
    """
    records = [read_record(path) for path in finished]
    job_runs = [record["wandb"] for record in records if "wandb" in record]
    if not job_runs:
        return
    from wandb import Html, Table
    from wandb.errors import Error

    from sdft.training.loggers import build_wandb_logger
    from sdft.training.wandb_logger import finish_wandb_run

    runs = read_finished_runs(finished)
    settings, metric = group_by_setting(runs), choose_metric(runs, preferred)
    wandb_run = read_or_create_wandb_run(folder, job_runs[0]["project"], name)
    tags = dict.fromkeys(tag for run in runs for tag in run.options.get("tags", []))
    try:
        logger = build_wandb_logger(
            str(folder),
            name,
            wandb_run["project"],
            group=folder.name,
            tags=list(tags),
            mode=job_runs[0].get("mode"),
            id=wandb_run["id"],
            job_type="sweep",
        )
        logger.log_hyperparams({"sweep": name, "jobs": jobs, **sweep_config(settings, runs, metric)})
        run = logger.experiment
        page = Html(str(folder / "compare.html"), inject=False)
        tables = {
            "settings": Table(*build_settings_table(settings, runs)),
            "runs": Table(*build_runs_table(settings, runs)),
        }
        logger.log_metrics(tables | {"compare": page})
        logger.log_summary(build_summary(settings, metric))
        if not run.disabled:
            print_text(f"wandb      {os.path.relpath(run.settings.sync_dir) if run.offline else run.url}")
        finish_wandb_run()
    except Error as error:
        print_text(f"wandb      sweep not logged: {error}")


def read_or_create_wandb_run(folder: Path, project: str, name: str) -> dict[str, str]:
    """The sweep's W&B run: its id, project and name, as in a job's `run.json`."""
    file = folder / WANDB_RUN_FILE
    if not file.is_file():
        with atomic_write(file) as partial:
            wandb_run = {"id": uuid4().hex[:8], "project": project, "name": name}
            partial.write_text(json.dumps(wandb_run, ensure_ascii=False) + "\n", encoding="utf-8")
    return read_json(file, {"id": str, "project": str, "name": str})


def sweep_config(settings: list[Setting], runs: list[FinishedRun], metric: str | None) -> dict:
    """The W&B config: numbers of runs, settings and seeds, the metric, and the values of every varying option."""
    options = {
        option: list(dict.fromkeys(map(to_wandb_value, option_column(settings, option))))
        for option in varying_options(settings)
    }
    seeds = {run.options.get("seed") for run in runs}
    counts = {"finished": len(runs), "settings": len(settings), "seeds": len(seeds)}
    return {**counts, "metric": metric, "options": options}


def build_settings_table(settings: list[Setting], runs: list[FinishedRun]) -> tuple[list[str], list[list]]:
    """Header, and one row per setting: options, number of seeds, means of scores and costs, standard deviations of scores."""
    columns = {"setting": [setting.label for setting in settings]}
    columns |= {option: unify_column_type(option_column(settings, option)) for option in varying_options(settings)}
    columns["seeds"], scores = [len(setting.runs) for setting in settings], comparable_metrics(runs)
    for name in table_columns(runs):
        columns[name] = [setting.mean(name) for setting in settings]
        if name in scores:
            columns[f"{name} std"] = [setting.std(name) for setting in settings]
    return columns_to_rows(columns)


def build_runs_table(settings: list[Setting], runs: list[FinishedRun]) -> tuple[list[str], list[list]]:
    """Header, and one row per run: folder, varying options, scores and costs."""
    columns = {"job": [run.folder.name for run in runs]}
    columns |= {
        option: unify_column_type([run.options.get(option) for run in runs])
        for option in [*varying_options(settings), "seed"]
    }
    return columns_to_rows(columns | {name: [run.value(name) for run in runs] for name in table_columns(runs)})


def columns_to_rows(columns: dict[str, list]) -> tuple[list[str], list[list]]:
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def varying_options(settings: list[Setting]) -> list[str]:
    return list(dict.fromkeys(option for setting in settings for option in setting.options))


def option_column(settings: list[Setting], option: str) -> list:
    return [setting.options.get(option) for setting in settings]


def unify_column_type(values: list) -> list:
    """Convert a column to text unless all values are numbers: a column of a W&B table has one type."""
    numbers = all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values)
    return values if numbers else [None if value is None else str(value) for value in values]


def to_wandb_value(value):
    return value if isinstance(value, int | float | str | None) else str(value)


def build_summary(settings: list[Setting], metric: str | None) -> dict:
    """The verdict, and the best setting's scores."""
    verdict = dict(line.split(None, 1) for line in recommend_setting(settings, metric)) if metric else {}
    best = find_best_setting(settings, metric) if metric and "equal" not in verdict else None
    if best is None:
        return verdict
    metrics = comparable_metrics([run for setting in settings for run in setting.runs])
    scores = {f"best/{name}": best.mean(name) for name in metrics}
    return {"best": best.label, **verdict, **{name: value for name, value in scores.items() if value is not None}}
