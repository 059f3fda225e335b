"""Overview page: cards of runs and sweeps, newest first, filtered by query and state."""

import math
import time
from dataclasses import dataclass
from urllib.parse import quote

from sdft.apps.gallery.metric_panels import read_last_step
from sdft.apps.gallery.run_facts import RUN_STATES, RunFacts
from sdft.apps.gallery.run_index import SWEEP_FILE, IndexedRun, IndexedSweep, RunIndex, format_age, get_modified_time
from sdft.apps.gallery.score_tables import list_score_rows
from sdft.runs.links import read_safe_json, resolve_safe_path

CARDS_PER_PAGE, SCORES_PER_CARD = 48, 4
HIDDEN_OPTIONS = (
    "logger",
    "name",
    "hydra",
    "resume",
    "reproduce",
    "allow_config_change",
    "allow_data_change",
    "sweep",
    "sampling",
    "checkpoints_total_limit",
    "workers",
    "accelerator",
)


@dataclass(frozen=True)
class RunFilter:
    """Every term of `query` must match; `sweep` is a sweep's id."""

    query: str = ""
    state: str = ""
    sweep: str = ""
    page: int = 1


def build_overview(run_index: RunIndex, run_filter: RunFilter) -> dict:
    """Template context. Only for the cards on this page more than `run.json` is read."""
    runs, sweeps = run_index.scan()
    group_sweeps = not (run_filter.query or run_filter.state or run_filter.sweep)
    candidates = [run for run in runs if not run_filter.sweep or run.sweep == run_filter.sweep]
    matching = [run for run in candidates if matches_query(run, run_filter.query)]
    counts = {state: sum(run.state == state for run in matching) for state in RUN_STATES}
    matching = [run for run in matching if run_filter.state in ("", run.state) and not (group_sweeps and run.sweep)]
    items = sorted([*matching, *(sweeps if group_sweeps else ())], key=lambda item: (item.at, item.id), reverse=True)
    pages = max(1, math.ceil(len(items) / CARDS_PER_PAGE))
    page = min(max(1, run_filter.page), pages)
    page_items = items[(page - 1) * CARDS_PER_PAGE : page * CARDS_PER_PAGE]
    sweep = next((sweep for sweep in sweeps if sweep.id == run_filter.sweep), None)
    return {
        "run_filter": run_filter,
        "total": len(runs),
        "matching": len(items),
        "counts": {state: count for state, count in counts.items() if count or state == run_filter.state},
        "page": page,
        "pages": pages,
        "cards": [
            build_sweep_card(item) if isinstance(item, IndexedSweep) else build_run_card(item) for item in page_items
        ],
        "sweep": sweep and build_sweep_card(sweep),
        "roots": [str(root) for root in run_index.roots.values()],
    }


def matches_query(run: IndexedRun, query: str) -> bool:
    """Every term must be a substring of the run's facts; `rank=4` matches that option exactly, not `rank=48`."""
    text = None
    for term in query.lower().split():
        key, sign, value = term.partition("=")
        if sign and key in run.facts.options:
            if run.facts.options[key].lower() != value:
                return False
            continue
        if text is None:
            text = "\n".join([run.id, run.state, *run.facts.overrides, *run.facts.options.values(), run.facts.device])
            text = text.lower()
        if term not in text:
            return False
    return True


def build_run_card(run: IndexedRun) -> dict:
    """Template context of a run's card."""
    scores = list_score_rows(run.folder) if run.state != "broken" else []
    return {
        "run": run,
        "link": f"/run/{quote_path(run.id)}",
        "strip": f"/strip/{quote_path(run.id)}?{get_modified_time(run.folder / 'samples.png'):.0f}",
        "kind": describe_training(run.facts),
        "options": [override for override in run.facts.overrides if is_informative_override(override)],
        "scores": scores[:SCORES_PER_CARD],
        "loss": format_loss_change(run.facts),
        "progress": compute_progress(run),
        "ago": f"{format_age(time.time() - run.at)} ago",
        "length": format_rounded_duration(run.facts.numbers.get("seconds")),
    }


def is_informative_override(override: str) -> bool:
    """Whether an override affects the result."""
    key = override.partition("=")[0].lstrip("+~")
    return key.split(".")[0] not in HIDDEN_OPTIONS and not key.endswith("_every")


def build_sweep_card(sweep: IndexedSweep) -> dict:
    states = {state: sum(job.state == state for job in sweep.jobs) for state in RUN_STATES}
    started = len(sweep.jobs)
    total = len(read_safe_json(sweep.folder, SWEEP_FILE, structure={"jobs?": list}).get("jobs", []))
    try:
        resolve_safe_path(sweep.folder, "compare.html")
        page = f"/file/{quote_path(sweep.id)}/compare.html"
    except OSError:
        page = ""
    return {
        "sweep": sweep,
        "link": f"/?in={quote(sweep.id, safe='')}",
        "states": {state: count for state, count in states.items() if count},
        "count": f"{started} of {total} jobs started" if started < total else f"{started} job{'s' * (started != 1)}",
        "strips": [build_run_card(job)["strip"] for job in sweep.jobs[:3]],
        "page": page,
    }


def quote_path(id: str) -> str:
    return quote(id.encode("utf-8", "surrogateescape"))


def describe_training(facts: RunFacts) -> str:
    """Method, rank, model and data in one line."""
    options = facts.options
    rank = f"rank {options['rank']}" if "rank" in options else ""
    return " · ".join(
        filter(None, [options.get("method", ""), rank, options.get("model", ""), options.get("data", "")])
    )


def format_loss_change(facts: RunFacts) -> str:
    first, last = facts.numbers.get("loss_first"), facts.numbers.get("loss_last")
    return f"{last / first - 1:+.1%}" if first and last is not None else ""


def compute_progress(run: IndexedRun) -> dict | None:
    """Step, steps and percentage of an unfinished run."""
    steps = run.facts.numbers.get("steps")
    if run.state not in ("running", "stopped", "failed") or not steps or steps < 1:
        return None
    step = read_last_step(run.folder) or 0
    return {"step": step, "steps": int(steps), "percent": max(0, min(100, round(100 * step / steps)))}


def format_rounded_duration(seconds: float | None) -> str:
    """Duration in seconds, minutes or hours."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def format_byte_size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
