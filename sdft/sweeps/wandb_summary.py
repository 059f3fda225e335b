"""A sweep on W&B: a run of its own in the group of its jobs, with the tables, the page and the verdict."""

import json
import os
from pathlib import Path
from uuid import uuid4

from sdft.runs.files import atomic_write, read_json
from sdft.sweeps.compare import choose_metric, find_best_setting, recommend_setting
from sdft.sweeps.results import (
    FinishedRun,
    Setting,
    comparable_metrics,
    group_by_setting,
    read_finished_run,
    table_columns,
)

WANDB_RUN_FILE = "wandb.json"  # which run the sweep is, for when it goes on


def log_sweep_summary(finished: list[Path], jobs: int, place: Path, name: str, preferred: str | None = None) -> None:
    """Log what finished of a sweep's `jobs`, and `place/compare.html`, where they were logged themselves; if nowhere, nothing.

    Asked again, it goes on with the same W&B run.
    """
    runs = [read_finished_run(folder) for folder in finished]
    records = [read_json(run.folder / "run.json") for run in runs]
    homes = [record["wandb"] for record in records if "wandb" in record]
    if not homes:
        return
    from wandb import Html, Table
    from wandb.errors import Error

    from sdft.training.loggers import build_wandb_logger
    from sdft.training.wandb_logger import finish_wandb_run

    settings, metric, home = (
        group_by_setting(runs),
        choose_metric(runs, preferred),
        read_or_create_wandb_run(place, homes[0]["project"], name),
    )
    tags = dict.fromkeys(tag for run in runs for tag in run.options.get("tags", []))
    try:
        logger = build_wandb_logger(
            str(place),
            name,
            home["project"],
            group=place.name,
            tags=list(tags),
            mode=homes[0].get("mode"),
            id=home["id"],
            job_type="sweep",
        )
        logger.log_hyperparams({"sweep": name, "jobs": jobs, **sweep_config(settings, runs, metric)})
        run = logger.experiment
        page = Html(str(place / "compare.html"), inject=False)
        tables = {
            "settings": Table(*build_settings_table(settings, runs)),
            "runs": Table(*build_runs_table(settings, runs)),
        }
        logger.log_metrics(tables | {"compare": page})
        logger.log_summary(build_summary(settings, metric))
        if not run.disabled:
            print(f"wandb    {os.path.relpath(run.settings.sync_dir) if run.offline else run.url}")
        finish_wandb_run()
    except Error as error:
        print(f"wandb    the sweep is not there: {error}")


def read_or_create_wandb_run(place: Path, project: str, name: str) -> dict[str, str]:
    """The sweep's run, as `run.json` names that of a job."""
    file = place / WANDB_RUN_FILE
    if not file.is_file():
        with atomic_write(file) as partial:
            home = {"id": uuid4().hex[:8], "project": project, "name": name}
            partial.write_text(json.dumps(home, ensure_ascii=False) + "\n", encoding="utf-8")
    return read_json(file)


def sweep_config(settings: list[Setting], runs: list[FinishedRun], metric: str) -> dict:
    """How much there is to compare, by what, and the values of every option that differs."""
    options = {
        option: list(dict.fromkeys(map(to_wandb_value, option_column(settings, option))))
        for option in varying_options(settings)
    }
    seeds = {run.options.get("seed") for run in runs}
    counts = {"finished": len(runs), "settings": len(settings), "seeds": len(seeds)}
    return {**counts, "metric": metric, "options": options}


def build_settings_table(settings: list[Setting], runs: list[FinishedRun]) -> tuple[list[str], list[list]]:
    """Heads, and a row a setting: its options, its seeds, and the mean of every score and cost; of scores also the deviation."""
    told = {"setting": [setting.label for setting in settings]}
    told |= {option: unify_column_type(option_column(settings, option)) for option in varying_options(settings)}
    told["seeds"], scores = [len(setting.runs) for setting in settings], comparable_metrics(runs)
    for name in table_columns(runs):
        told[name] = [setting.mean(name) for setting in settings]
        if name in scores:
            told[f"{name} std"] = [setting.std(name) for setting in settings]
    return columns_to_rows(told)


def build_runs_table(settings: list[Setting], runs: list[FinishedRun]) -> tuple[list[str], list[list]]:
    """Heads, and a row a run: its folder, its options that differ, its scores and costs."""
    told = {"job": [run.folder.name for run in runs]}
    told |= {
        option: unify_column_type([run.options.get(option) for run in runs])
        for option in [*varying_options(settings), "seed"]
    }
    return columns_to_rows(told | {name: [run.value(name) for run in runs] for name in table_columns(runs)})


def columns_to_rows(told: dict[str, list]) -> tuple[list[str], list[list]]:
    return list(told), [list(row) for row in zip(*told.values(), strict=True)]


def varying_options(settings: list[Setting]) -> list[str]:
    return list(dict.fromkeys(option for setting in settings for option in setting.options))


def option_column(settings: list[Setting], option: str) -> list:
    return [setting.options.get(option) for setting in settings]


def unify_column_type(values: list) -> list:
    """Numbers, or text: a column of a W&B table holds one kind."""
    numbers = all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values)
    return values if numbers else [None if value is None else str(value) for value in values]


def to_wandb_value(value):
    return value if isinstance(value, int | float | str | None) else str(value)


def build_summary(settings: list[Setting], metric: str) -> dict:
    """The verdict, and the best setting's scores."""
    verdict = dict(line.split(None, 1) for line in recommend_setting(settings, metric))
    best = find_best_setting(settings, metric)
    if best is None:
        return verdict
    there = comparable_metrics([run for setting in settings for run in setting.runs])
    scores = {f"best/{name}": best.mean(name) for name in there}
    return {"best": best.label, **verdict, **{name: value for name, value in scores.items() if value is not None}}
