"""All runs on a page, newest first: what they are called, how they fared, and which of them were asked for."""

import math
import time
from dataclasses import dataclass
from urllib.parse import quote

from sdft.apps.gallery.metric_series import last_step
from sdft.apps.gallery.run_facts import STATES, Facts, listing, mapping
from sdft.apps.gallery.run_index import SWEEP, Run, Shelf, Sweep, age, changed
from sdft.apps.gallery.safe_paths import json_of, own
from sdft.apps.gallery.score_tables import scores

A_PAGE, SCORES = 48, 4  # cards of a page, and scores of a card
UNTOLD = (
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
class Asked:
    """`words` must all be found; `inside` is a sweep's id."""

    words: str = ""
    state: str = ""
    inside: str = ""
    page: int = 1


def overview(shelf: Shelf, asked: Asked) -> dict:
    """What the page is made of. Only the cards that are shown are looked at closer than their `run.json`."""
    runs, sweeps = shelf.scan()
    folded = not (asked.words or asked.state or asked.inside)
    there = [run for run in runs if not asked.inside or run.sweep == asked.inside]
    found = [run for run in there if fits(run, asked.words)]
    counts = {state: sum(run.state == state for run in found) for state in STATES}
    found = [run for run in found if asked.state in ("", run.state) and not (folded and run.sweep)]
    items = sorted([*found, *(sweeps if folded else ())], key=lambda item: (item.at, item.id), reverse=True)
    pages = max(1, math.ceil(len(items) / A_PAGE))
    page = min(max(1, asked.page), pages)
    some = items[(page - 1) * A_PAGE : page * A_PAGE]
    sweep = next((sweep for sweep in sweeps if sweep.id == asked.inside), None)
    return {
        "asked": asked,
        "total": len(runs),
        "found": len(items),
        "counts": {state: count for state, count in counts.items() if count or state == asked.state},
        "page": page,
        "pages": pages,
        "cards": [sweep_card(item) if isinstance(item, Sweep) else card(item) for item in some],
        "sweep": sweep and sweep_card(sweep),
        "places": [str(place) for place in shelf.places.values()],
    }


def fits(run: Run, words: str) -> bool:
    """Every word is part of what is known of the run; `rank=4` is that word alone, not `rank=48`."""
    known = None
    for word in words.lower().split():
        key, sign, value = word.partition("=")
        if sign and key in run.facts.words:
            if run.facts.words[key].lower() != value:
                return False
            continue
        if known is None:
            known = "\n".join([run.id, run.state, *run.facts.overrides, *run.facts.words.values(), run.facts.device])
            known = known.lower()
        if word not in known:
            return False
    return True


def card(run: Run) -> dict:
    """What the overview shows of a run."""
    told = scores(run.folder) if run.state != "broken" else []
    return {
        "run": run,
        "link": f"/run/{quoted(run.id)}",
        "strip": f"/strip/{quoted(run.id)}?{changed(run.folder / 'samples.png'):.0f}",
        "kind": kind(run.facts),
        "words": [word for word in run.facts.overrides if tells(word)],
        "scores": told[:SCORES],
        "loss": loss_change(run.facts),
        "progress": progress(run),
        "ago": f"{age(time.time() - run.at)} ago",
        "length": length(run.facts.numbers.get("seconds")),
    }


def tells(word: str) -> bool:
    """Whether a word of the command line says something of the result."""
    key = word.partition("=")[0].lstrip("+~")
    return key.split(".")[0] not in UNTOLD and not key.endswith("_every")


def sweep_card(sweep: Sweep) -> dict:
    states = {state: sum(job.state == state for job in sweep.jobs) for state in STATES}
    begun, all_of_them = len(sweep.jobs), len(listing(mapping(json_of(sweep.folder, SWEEP)).get("jobs")))
    try:
        own(sweep.folder, "compare.html")
        page = f"/file/{quoted(sweep.id)}/compare.html"
    except OSError:
        page = ""
    return {
        "sweep": sweep,
        "link": f"/?in={quote(sweep.id, safe='')}",
        "states": {state: count for state, count in states.items() if count},
        "count": f"{begun} of {all_of_them} jobs begun" if begun < all_of_them else f"{begun} job{'s' * (begun != 1)}",
        "strips": [card(job)["strip"] for job in sweep.jobs[:3]],
        "page": page,
    }


def quoted(id: str) -> str:
    return quote(id.encode("utf-8", "surrogateescape"))


def kind(facts: Facts) -> str:
    """In a few words what was trained on what."""
    told = facts.words
    rank = f"rank {told['rank']}" if "rank" in told else ""
    return " · ".join(filter(None, [told.get("method", ""), rank, told.get("model", ""), told.get("data", "")]))


def loss_change(facts: Facts) -> str:
    first, last = facts.numbers.get("loss_first"), facts.numbers.get("loss_last")
    return f"{last / first - 1:+.1%}" if first and last is not None else ""


def progress(run: Run) -> dict | None:
    """Of a run that has not come to its end: step, steps and their share in percent."""
    steps = run.facts.numbers.get("steps")
    if run.state not in ("running", "stopped", "failed") or not steps or steps < 1:
        return None
    step = last_step(run.folder) or 0
    return {"step": step, "steps": int(steps), "percent": max(0, min(100, round(100 * step / steps)))}


def length(seconds: float | None) -> str:
    """A time as people say it."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
