"""All runs on a page, newest first: what they are called, how they fared, and which of them were run_filter for."""

import math
import time
from dataclasses import dataclass
from urllib.parse import quote

from sdft.apps.gallery.metric_series import read_last_step
from sdft.apps.gallery.run_facts import RUN_STATES, RunFacts, to_dict_or_empty, to_list_or_empty
from sdft.apps.gallery.run_index import SWEEP_FILE, IndexedRun, IndexedSweep, RunIndex, format_age, get_modified_time
from sdft.apps.gallery.safe_paths import read_safe_json, resolve_safe_path
from sdft.apps.gallery.score_tables import list_score_rows

CARDS_PER_PAGE, SCORES_PER_CARD = 48, 4  # cards of a page, and scores of a card
HIDDEN_OPTIONS = (
    "logger",
    "name",
    "hydra",
    "resume",
    "reproduce",
    "allow_config_change",
    "sweep",
    "sampling",
    "checkpoints_total_limit",
    "workers",
    "accelerator",
)


@dataclass(frozen=True)
class RunFilter:
    """`options` must all be matching; `inside` is a sweep's id."""

    options: str = ""
    state: str = ""
    inside: str = ""
    page: int = 1


def build_overview(shelf: RunIndex, run_filter: RunFilter) -> dict:
    """What the page is made of. Only the cards that are shown are looked at closer than their `run.json`."""
    runs, sweeps = shelf.scan()
    folded = not (run_filter.options or run_filter.state or run_filter.inside)
    there = [run for run in runs if not run_filter.inside or run.sweep == run_filter.inside]
    matching = [run for run in there if matches_query(run, run_filter.options)]
    counts = {state: sum(run.state == state for run in matching) for state in RUN_STATES}
    matching = [run for run in matching if run_filter.state in ("", run.state) and not (folded and run.sweep)]
    items = sorted([*matching, *(sweeps if folded else ())], key=lambda item: (item.at, item.id), reverse=True)
    pages = max(1, math.ceil(len(items) / CARDS_PER_PAGE))
    page = min(max(1, run_filter.page), pages)
    some = items[(page - 1) * CARDS_PER_PAGE : page * CARDS_PER_PAGE]
    sweep = next((sweep for sweep in sweeps if sweep.id == run_filter.inside), None)
    return {
        "run_filter": run_filter,
        "total": len(runs),
        "matching": len(items),
        "counts": {state: count for state, count in counts.items() if count or state == run_filter.state},
        "page": page,
        "pages": pages,
        "cards": [build_sweep_card(item) if isinstance(item, IndexedSweep) else build_run_card(item) for item in some],
        "sweep": sweep and build_sweep_card(sweep),
        "roots": [str(place) for place in shelf.roots.values()],
    }


def matches_query(run: IndexedRun, options: str) -> bool:
    """Every word is part of what is known of the run; `rank=4` is that word alone, not `rank=48`."""
    known = None
    for word in options.lower().split():
        key, sign, value = word.partition("=")
        if sign and key in run.facts.options:
            if run.facts.options[key].lower() != value:
                return False
            continue
        if known is None:
            known = "\n".join([run.id, run.state, *run.facts.overrides, *run.facts.options.values(), run.facts.device])
            known = known.lower()
        if word not in known:
            return False
    return True


def build_run_card(run: IndexedRun) -> dict:
    """What the overview shows of a run."""
    told = list_score_rows(run.folder) if run.state != "broken" else []
    return {
        "run": run,
        "link": f"/run/{quote_path(run.id)}",
        "strip": f"/strip/{quote_path(run.id)}?{get_modified_time(run.folder / 'samples.png'):.0f}",
        "kind": describe_training(run.facts),
        "options": [word for word in run.facts.overrides if is_informative_override(word)],
        "scores": told[:SCORES_PER_CARD],
        "loss": format_loss_change(run.facts),
        "progress": compute_progress(run),
        "ago": f"{format_age(time.time() - run.at)} ago",
        "length": format_rounded_duration(run.facts.numbers.get("seconds")),
    }


def is_informative_override(word: str) -> bool:
    """Whether a word of the command line says something of the result."""
    key = word.partition("=")[0].lstrip("+~")
    return key.split(".")[0] not in HIDDEN_OPTIONS and not key.endswith("_every")


def build_sweep_card(sweep: IndexedSweep) -> dict:
    states = {state: sum(job.state == state for job in sweep.jobs) for state in RUN_STATES}
    begun, all_of_them = (
        len(sweep.jobs),
        len(to_list_or_empty(to_dict_or_empty(read_safe_json(sweep.folder, SWEEP_FILE)).get("jobs"))),
    )
    try:
        resolve_safe_path(sweep.folder, "compare.html")
        page = f"/file/{quote_path(sweep.id)}/compare.html"
    except OSError:
        page = ""
    return {
        "sweep": sweep,
        "link": f"/?in={quote(sweep.id, safe='')}",
        "states": {state: count for state, count in states.items() if count},
        "count": f"{begun} of {all_of_them} jobs begun" if begun < all_of_them else f"{begun} job{'s' * (begun != 1)}",
        "strips": [build_run_card(job)["strip"] for job in sweep.jobs[:3]],
        "page": page,
    }


def quote_path(id: str) -> str:
    return quote(id.encode("utf-8", "surrogateescape"))


def describe_training(facts: RunFacts) -> str:
    """In a few options what was trained on what."""
    told = facts.options
    rank = f"rank {told['rank']}" if "rank" in told else ""
    return " · ".join(filter(None, [told.get("method", ""), rank, told.get("model", ""), told.get("data", "")]))


def format_loss_change(facts: RunFacts) -> str:
    first, last = facts.numbers.get("loss_first"), facts.numbers.get("loss_last")
    return f"{last / first - 1:+.1%}" if first and last is not None else ""


def compute_progress(run: IndexedRun) -> dict | None:
    """Of a run that has not come to its end: step, steps and their share in percent."""
    steps = run.facts.numbers.get("steps")
    if run.state not in ("running", "stopped", "failed") or not steps or steps < 1:
        return None
    step = read_last_step(run.folder) or 0
    return {"step": step, "steps": int(steps), "percent": max(0, min(100, round(100 * step / steps)))}


def format_rounded_duration(seconds: float | None) -> str:
    """A time as people say it."""
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
