"""A sweep on W&B: a run of its own in the group of its jobs, with the tables, the page and the verdict."""

import json
import os
from pathlib import Path
from uuid import uuid4

from sdft.runs.files import read_json, whole
from sdft.sweeps.compare import answer, foremost, judged
from sdft.sweeps.results import Run, Setting, columns, grouped, metrics, read

HOME = "wandb.json"  # which run the sweep is, for when it goes on


def overview(finished: list[Path], jobs: int, place: Path, name: str, preferred: str | None = None) -> None:
    """Log what finished of a sweep's `jobs`, and `place/compare.html`, where they were logged themselves; if nowhere, nothing.

    Asked again, it goes on with the same W&B run.
    """
    runs = [read(folder) for folder in finished]
    records = [read_json(run.folder / "run.json") for run in runs]
    homes = [record["wandb"] for record in records if "wandb" in record]
    if not homes:
        return
    from wandb import Html, Table
    from wandb.errors import Error

    from sdft.training.loggers import wandb
    from sdft.training.wandb_logger import close

    settings, metric, home = grouped(runs), judged(runs, preferred), home_of(place, homes[0]["project"], name)
    tags = dict.fromkeys(tag for run in runs for tag in run.words.get("tags", []))
    try:
        logger = wandb(
            str(place),
            name,
            home["project"],
            group=place.name,
            tags=list(tags),
            mode=homes[0].get("mode"),
            id=home["id"],
            job_type="sweep",
        )
        logger.log_hyperparams({"sweep": name, "jobs": jobs, **facts(settings, runs, metric)})
        run = logger.experiment
        page = Html(str(place / "compare.html"), inject=False)
        tables = {"settings": Table(*of_settings(settings, runs)), "runs": Table(*of_runs(settings, runs))}
        logger.log_metrics(tables | {"compare": page})
        logger.log_summary(summary(settings, metric))
        if not run.disabled:
            print(f"wandb    {os.path.relpath(run.settings.sync_dir) if run.offline else run.url}")
        close()
    except Error as error:
        print(f"wandb    the sweep is not there: {error}")


def home_of(place: Path, project: str, name: str) -> dict[str, str]:
    """The sweep's run, as `run.json` names that of a job."""
    file = place / HOME
    if not file.is_file():
        with whole(file) as partial:
            home = {"id": uuid4().hex[:8], "project": project, "name": name}
            partial.write_text(json.dumps(home, ensure_ascii=False) + "\n", encoding="utf-8")
    return read_json(file)


def facts(settings: list[Setting], runs: list[Run], metric: str) -> dict:
    """How much there is to compare, by what, and the values of every word that differs."""
    words = {word: list(dict.fromkeys(map(text, column(settings, word)))) for word in words_of(settings)}
    seeds = {run.words.get("seed") for run in runs}
    counts = {"finished": len(runs), "settings": len(settings), "seeds": len(seeds)}
    return {**counts, "metric": metric, "words": words}


def of_settings(settings: list[Setting], runs: list[Run]) -> tuple[list[str], list[list]]:
    """Heads, and a row a setting: its words, its seeds, and the mean of every score and cost; of scores also the deviation."""
    told = {"setting": [setting.label for setting in settings]}
    told |= {word: alike(column(settings, word)) for word in words_of(settings)}
    told["seeds"], scores = [len(setting.runs) for setting in settings], metrics(runs)
    for name in columns(runs):
        told[name] = [setting.mean(name) for setting in settings]
        if name in scores:
            told[f"{name} std"] = [setting.spread(name) for setting in settings]
    return rows(told)


def of_runs(settings: list[Setting], runs: list[Run]) -> tuple[list[str], list[list]]:
    """Heads, and a row a run: its folder, its words that differ, its scores and costs."""
    told = {"job": [run.folder.name for run in runs]}
    told |= {word: alike([run.words.get(word) for run in runs]) for word in [*words_of(settings), "seed"]}
    return rows(told | {name: [run.value(name) for run in runs] for name in columns(runs)})


def rows(told: dict[str, list]) -> tuple[list[str], list[list]]:
    return list(told), [list(row) for row in zip(*told.values(), strict=True)]


def words_of(settings: list[Setting]) -> list[str]:
    return list(dict.fromkeys(word for setting in settings for word in setting.words))


def column(settings: list[Setting], word: str) -> list:
    return [setting.words.get(word) for setting in settings]


def alike(values: list) -> list:
    """Numbers, or text: a column of a W&B table holds one kind."""
    numbers = all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values)
    return values if numbers else [None if value is None else str(value) for value in values]


def text(value):
    return value if isinstance(value, int | float | str | None) else str(value)


def summary(settings: list[Setting], metric: str) -> dict:
    """The verdict, and the best setting's scores."""
    verdict = dict(line.split(None, 1) for line in answer(settings, metric))
    best = foremost(settings, metric)
    if best is None:
        return verdict
    there = metrics([run for setting in settings for run in setting.runs])
    scores = {f"best/{name}": best.mean(name) for name in there}
    return {"best": best.label, **verdict, **{name: value for name, value in scores.items() if value is not None}}
