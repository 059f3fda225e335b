"""One run on a page: its options, commands, scores, data sheet and files; samples and curves come when the page asks for them."""

import os
import shlex
import stat
from pathlib import Path

from sdft.apps.gallery.overview_page import (
    build_run_card,
    format_byte_size,
    format_loss_change,
    format_rounded_duration,
    quote_path,
)
from sdft.apps.gallery.run_facts import format_command, to_dict_or_empty, to_text
from sdft.apps.gallery.run_index import IndexedRun
from sdft.apps.gallery.safe_paths import is_visible_name, read_safe_bytes, read_safe_json, resolve_safe_path
from sdft.apps.gallery.sample_images import list_sample_images, list_sample_steps
from sdft.apps.gallery.score_tables import GROUP_TITLES, list_score_rows

MAX_LISTED_FILES = 300  # files of one folder in a run
MAX_COUNTED_FILES = 20_000  # files of a run that are counted
CONTENT_TYPES = {  # what may be opened, and as what it is sent
    **dict.fromkeys((".txt", ".md", ".json", ".yaml", ".yml", ".csv", ".log", ".diff"), "text/plain; charset=utf-8"),
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".html": "text/html; charset=utf-8",
}


def build_run_page(run: IndexedRun) -> dict:
    return {
        "run": run,
        "card": build_run_card(run),
        "facts": list_run_facts(run),
        "scores": group_scores(run.folder),
        "titles": GROUP_TITLES,
        "report": build_file_url(run, "evaluation", "report.html"),
        "steps": list_sample_steps(run.folder),
        "commands": list_commands(run),
        "log": [] if run.state in ("finished", "running") else read_log_tail(run.folder),
        "sheet": build_file_url(run, "data.png"),
        "data": summarize_data_sheet(run.folder),
        "files": list_run_files(run),
        "curves": f"/curves/{quote_path(run.id)}",
        "samples": f"/samples/{quote_path(run.id)}",
        "compare": f"/compare?run={quote_path(run.id)}",
    }


def build_file_url(run: IndexedRun, *parts: str) -> str:
    """Where a file of a run is served; empty where there is none."""
    try:
        resolve_safe_path(run.folder, *parts)
    except OSError:
        return ""
    return f"/file/{quote_path('/'.join((run.id, *parts)))}"


def list_run_facts(run: IndexedRun) -> list[tuple[str, str]]:
    """What is told of a run beside its options."""
    told, numbers = run.facts, run.facts.numbers
    count = lambda name, form="{:,.0f}": form.format(numbers[name]) if name in numbers else ""  # noqa: E731
    first, last = count("loss_first", "{:.4f}"), count("loss_last", "{:.4f}")
    found = {
        "started": told.started.replace("T", " "),
        "took": format_rounded_duration(numbers.get("seconds")),
        "a step": count("seconds_per_step", "{:.3g} s"),
        "on": told.device,
        "memory": count("memory_gb", "{:.2f} GB"),
        "trainable": count("trainable", "{:,.0f} parameters"),
        "loss at fixed noise": f"{first} → {last} ({format_loss_change(told)})" if first and last else "",
        "best": told.best,
        "result": count("result_mb", "{:.1f} MB"),
        "stopped at step": count("stopped_at"),
        "gone on with": f"{told.resumed} time{'s' * (told.resumed > 1)}" if told.resumed else "",
        "commit": told.commit,
        "versions": told.versions,
        "folder": str(run.folder),
    }
    return [(name, value) for name, value in found.items() if value]


def group_scores(folder: Path) -> dict[str, list]:
    found: dict[str, list] = {}
    for score in list_score_rows(folder):
        found.setdefault(score.group, []).append(score)
    return found


def list_commands(run: IndexedRun) -> list[dict]:
    """What to type; `safe` when it may be copied: what a run says of itself is another's word."""
    folder = str(run.folder)
    said = lambda *parts: {"text": shlex.join(parts), "safe": folder.isprintable()}  # noqa: E731
    found = []
    if run.facts.command:
        line, safe = format_command(run.facts.command)
        found.append({"name": "this run", "text": line, "safe": safe})
    if run.state == "finished":
        found.append({"name": "the same again", **said("python", "train.py", f"reproduce={folder}")})
        more = int(run.facts.numbers.get("steps", 0)) * 2
        options = [f"steps={more}", "allow_config_change=true"] if more else ["allow_config_change=true"]
        found.append({"name": "go on, to more steps", **said("python", "train.py", f"resume={folder}", *options)})
        found.append({"name": "score it", **said("python", "evaluate.py", f"run={folder}")})
    elif run.state in ("stopped", "failed") and any(run.folder.glob("checkpoints/*.ckpt")):
        found.append({"name": "go on with it", **said("python", "train.py", f"resume={folder}")})
    return found


def read_log_tail(folder: Path) -> list[str]:
    """The last lines that a job of a sweep printed."""
    try:
        lines = read_safe_bytes(folder, "log.txt").decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [to_text(line) for line in lines if line.strip()][-12:]


def summarize_data_sheet(folder: Path) -> list[tuple[str, str]]:
    """Of the data sheet, what fits into a line."""
    found = []
    for name, value in to_dict_or_empty(read_safe_json(folder, "data.json")).items():
        if isinstance(value, dict):
            value = ", ".join(f"{to_text(key)} {to_text(one)}".strip() for key, one in list(value.items())[:12])
        elif isinstance(value, list):
            value = ", ".join(filter(None, map(to_text, value[:12])))
        if told := to_text(value):
            found.append((to_text(name), told))
    return found[:24]


def list_run_files(run: IndexedRun) -> list[dict]:
    """What lies at the top of a run's folder, with sizes, and what is in its folders."""
    top: dict[str, dict] = {}
    count = 0
    for place, folders, names in os.walk(run.folder):
        folders[:] = sorted(name for name in folders if is_visible_name(name))
        inner = Path(place).relative_to(run.folder).parts
        for name in sorted(filter(is_visible_name, names)):
            count += 1
            if count > MAX_COUNTED_FILES or (told := get_file_size(os.path.join(place, name))) is None:
                continue
            parts = (*inner, name)
            opens = Path(name).suffix.lower() in CONTENT_TYPES
            one = {"name": "/".join(parts[1:] or parts), "bytes": told, "size": format_byte_size(told)}
            one["link"] = f"/file/{quote_path('/'.join((run.id, *parts)))}" if opens else ""
            entry = top.setdefault(parts[0], {"name": parts[0], "bytes": 0, "count": 0, "files": []})
            if inner:
                entry["bytes"] += told
                entry["count"] += 1
                if len(entry["files"]) < MAX_LISTED_FILES:
                    entry["files"].append(one)
            else:
                top[parts[0]] = one | {"count": 0, "files": []}
    return [entry | {"size": format_byte_size(entry["bytes"])} for _, entry in sorted(top.items())]


def get_file_size(path: str) -> int | None:
    """Bytes of a file that is one."""
    try:
        told = os.lstat(path)
    except OSError:
        return None
    return told.st_size if stat.S_ISREG(told.st_mode) else None


def collect_samples(run: IndexedRun) -> dict:
    """The pictures of every step by prompt and seed, for the page to leaf through."""
    columns: dict[tuple[str, str], dict[int, str]] = {}
    there = list_sample_steps(run.folder)
    for step in there:
        for number, one in enumerate(list_sample_images(run.folder, step)):
            name = (one.prompt, one.seed) if one.prompt else (f"picture {number + 1}", "")
            columns.setdefault(name, {})[step] = f"/file/{quote_path(run.id)}/{quote_path(one.file)}"
    rows = [
        {"prompt": prompt, "seed": seed, "files": [drawn.get(step, "") for step in there]}
        for (prompt, seed), drawn in columns.items()
    ]
    return {"steps": there, "rows": rows}
