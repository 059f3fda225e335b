"""One run on a page: its words, commands, scores, data sheet and files; samples and curves come when the page asks for them."""

import os
import shlex
import stat
from pathlib import Path

from sdft.apps.gallery.overview_page import card, length, loss_change, quoted, size
from sdft.apps.gallery.run_facts import command_line, mapping, text
from sdft.apps.gallery.run_index import Run
from sdft.apps.gallery.safe_paths import content, json_of, own, shown
from sdft.apps.gallery.sample_images import prints, steps
from sdft.apps.gallery.score_tables import TITLES, scores

LISTED = 300  # files of one folder in a run
WALKED = 20_000  # files of a run that are counted
KINDS = {  # what may be opened, and as what it is sent
    **dict.fromkeys((".txt", ".md", ".json", ".yaml", ".yml", ".csv", ".log", ".diff"), "text/plain; charset=utf-8"),
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".html": "text/html; charset=utf-8",
}


def run_page(run: Run) -> dict:
    return {
        "run": run,
        "card": card(run),
        "facts": facts(run),
        "scores": grouped(run.folder),
        "titles": TITLES,
        "report": address(run, "evaluation", "report.html"),
        "steps": steps(run.folder),
        "commands": commands(run),
        "log": [] if run.state in ("finished", "running") else log(run.folder),
        "sheet": address(run, "data.png"),
        "data": data_facts(run.folder),
        "files": files(run),
        "curves": f"/curves/{quoted(run.id)}",
        "samples": f"/samples/{quoted(run.id)}",
        "compare": f"/compare?run={quoted(run.id)}",
    }


def address(run: Run, *parts: str) -> str:
    """Where a file of a run is served; empty where there is none."""
    try:
        own(run.folder, *parts)
    except OSError:
        return ""
    return f"/file/{quoted('/'.join((run.id, *parts)))}"


def facts(run: Run) -> list[tuple[str, str]]:
    """What is told of a run beside its words."""
    told, numbers = run.facts, run.facts.numbers
    count = lambda name, form="{:,.0f}": form.format(numbers[name]) if name in numbers else ""  # noqa: E731
    first, last = count("loss_first", "{:.4f}"), count("loss_last", "{:.4f}")
    found = {
        "started": told.started.replace("T", " "),
        "took": length(numbers.get("seconds")),
        "a step": count("seconds_per_step", "{:.3g} s"),
        "on": told.device,
        "memory": count("memory_gb", "{:.2f} GB"),
        "learns": count("learns", "{:,.0f} parameters"),
        "loss at fixed noise": f"{first} → {last} ({loss_change(told)})" if first and last else "",
        "best": told.best,
        "result": count("result_mb", "{:.1f} MB"),
        "stopped at step": count("stopped_at"),
        "gone on with": f"{told.resumed} time{'s' * (told.resumed > 1)}" if told.resumed else "",
        "commit": told.commit,
        "versions": told.versions,
        "folder": str(run.folder),
    }
    return [(name, value) for name, value in found.items() if value]


def grouped(folder: Path) -> dict[str, list]:
    found: dict[str, list] = {}
    for score in scores(folder):
        found.setdefault(score.group, []).append(score)
    return found


def commands(run: Run) -> list[dict]:
    """What to type; `safe` when it may be copied: what a run says of itself is another's word."""
    folder = str(run.folder)
    said = lambda *parts: {"text": shlex.join(parts), "safe": folder.isprintable()}  # noqa: E731
    found = []
    if run.facts.command:
        line, safe = command_line(run.facts.command)
        found.append({"name": "this run", "text": line, "safe": safe})
    if run.state == "finished":
        found.append({"name": "the same again", **said("python", "train.py", f"reproduce={folder}")})
        more = int(run.facts.numbers.get("steps", 0)) * 2
        words = [f"steps={more}", "allow_config_change=true"] if more else ["allow_config_change=true"]
        found.append({"name": "go on, to more steps", **said("python", "train.py", f"resume={folder}", *words)})
        found.append({"name": "score it", **said("python", "evaluate.py", f"run={folder}")})
    elif run.state in ("stopped", "failed") and any(run.folder.glob("checkpoints/*.ckpt")):
        found.append({"name": "go on with it", **said("python", "train.py", f"resume={folder}")})
    return found


def log(folder: Path) -> list[str]:
    """The last lines that a job of a sweep printed."""
    try:
        lines = content(folder, "log.txt").decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [text(line) for line in lines if line.strip()][-12:]


def data_facts(folder: Path) -> list[tuple[str, str]]:
    """Of the data sheet, what fits into a line."""
    found = []
    for name, value in mapping(json_of(folder, "data.json")).items():
        if isinstance(value, dict):
            value = ", ".join(f"{text(key)} {text(one)}".strip() for key, one in list(value.items())[:12])
        elif isinstance(value, list):
            value = ", ".join(filter(None, map(text, value[:12])))
        if told := text(value):
            found.append((text(name), told))
    return found[:24]


def files(run: Run) -> list[dict]:
    """What lies at the top of a run's folder, with sizes, and what is in its folders."""
    top: dict[str, dict] = {}
    count = 0
    for place, folders, names in os.walk(run.folder):
        folders[:] = sorted(name for name in folders if shown(name))
        inner = Path(place).relative_to(run.folder).parts
        for name in sorted(filter(shown, names)):
            count += 1
            if count > WALKED or (told := plain(os.path.join(place, name))) is None:
                continue
            parts = (*inner, name)
            opens = Path(name).suffix.lower() in KINDS
            one = {"name": "/".join(parts[1:] or parts), "bytes": told, "size": size(told)}
            one["link"] = f"/file/{quoted('/'.join((run.id, *parts)))}" if opens else ""
            entry = top.setdefault(parts[0], {"name": parts[0], "bytes": 0, "count": 0, "files": []})
            if inner:
                entry["bytes"] += told
                entry["count"] += 1
                if len(entry["files"]) < LISTED:
                    entry["files"].append(one)
            else:
                top[parts[0]] = one | {"count": 0, "files": []}
    return [entry | {"size": size(entry["bytes"])} for _, entry in sorted(top.items())]


def plain(path: str) -> int | None:
    """Bytes of a file that is one."""
    try:
        told = os.lstat(path)
    except OSError:
        return None
    return told.st_size if stat.S_ISREG(told.st_mode) else None


def samples(run: Run) -> dict:
    """The pictures of every step by prompt and seed, for the page to leaf through."""
    columns: dict[tuple[str, str], dict[int, str]] = {}
    there = steps(run.folder)
    for step in there:
        for number, one in enumerate(prints(run.folder, step)):
            name = (one.prompt, one.seed) if one.prompt else (f"picture {number + 1}", "")
            columns.setdefault(name, {})[step] = f"/file/{quoted(run.id)}/{quoted(one.file)}"
    rows = [
        {"prompt": prompt, "seed": seed, "files": [drawn.get(step, "") for step in there]}
        for (prompt, seed), drawn in columns.items()
    ]
    return {"steps": there, "rows": rows}
