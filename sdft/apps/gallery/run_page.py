"""Page of one run: options, commands, scores, data sheet and files; samples and curves are separate requests."""

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
from sdft.apps.gallery.run_facts import format_command, to_text
from sdft.apps.gallery.run_index import IndexedRun
from sdft.apps.gallery.sample_images import list_sample_images, list_sample_steps
from sdft.apps.gallery.score_tables import GROUP_TITLES, list_score_rows, read_safe_evaluations
from sdft.options.quoting import format_override
from sdft.runs.evaluations import list_evaluations
from sdft.runs.links import is_visible_name, read_safe_bytes, read_safe_json, resolve_safe_path
from sdft.runs.stored_options import are_plain_overrides

MAX_LISTED_FILES = 300  # per subfolder
MAX_COUNTED_FILES = 20_000  # per run
CONTENT_TYPES = {  # files that may be opened
    **dict.fromkeys((".txt", ".md", ".json", ".yaml", ".yml", ".csv", ".log", ".diff"), "text/plain; charset=utf-8"),
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".html": "text/html; charset=utf-8",
}


def build_run_page(run: IndexedRun) -> dict:
    scores = group_scores(run.folder)
    return {
        "run": run,
        "card": build_run_card(run),
        "facts": list_run_facts(run),
        "scores": scores,
        "titles": GROUP_TITLES,
        "outdated": next((row.outdated for rows in scores.values() for row in rows), ""),
        "reports": list_reports(run),
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


def list_reports(run: IndexedRun) -> list[tuple[str, str]]:
    """Name and URL of the report of each evaluation; earlier results are named by their step."""
    steps = {report["path"]: report["outdated_step"] for report in read_safe_evaluations(run.folder)}
    names = {
        folder: folder.name if steps.get(folder) is None else f"{folder.name}, of step {steps[folder]}"
        for folder in list_evaluations(run.folder)
    }
    urls = [(name, build_file_url(run, folder.name, "report.html")) for folder, name in names.items()]
    return [(name, url) for name, url in urls if url]


def build_file_url(run: IndexedRun, *parts: str) -> str:
    """URL of a file of a run, empty if it does not exist."""
    try:
        resolve_safe_path(run.folder, *parts)
    except OSError:
        return ""
    return f"/file/{quote_path('/'.join((run.id, *parts)))}"


def list_run_facts(run: IndexedRun) -> list[tuple[str, str]]:
    """Labelled facts of a run, without its options."""
    facts, numbers = run.facts, run.facts.numbers
    count = lambda name, form="{:,.0f}": form.format(numbers[name]) if name in numbers else ""  # noqa: E731
    first, last = count("loss_first", "{:.4f}"), count("loss_last", "{:.4f}")
    labelled = {
        "started": facts.started.replace("T", " "),
        "duration": format_rounded_duration(numbers.get("seconds")),
        "per step": count("seconds_per_step", "{:.3g} s"),
        "device": facts.device,
        "memory": count("memory_gb", "{:.2f} GB"),
        "trainable": count("trainable", "{:,.0f} parameters"),
        "loss at fixed noise": f"{first} → {last} ({format_loss_change(facts)})" if first and last else "",
        "best": facts.best,
        "result": count("result_mb", "{:.1f} MB"),
        "stopped at step": count("stopped_at"),
        "resumed": f"{facts.resumed} time{'s' * (facts.resumed > 1)}" if facts.resumed else "",
        "commit": facts.commit,
        "versions": facts.versions,
        "folder": str(run.folder),
    }
    return [(name, value) for name, value in labelled.items() if value]


def group_scores(folder: Path) -> dict[str, list]:
    groups: dict[str, list] = {}
    for score in list_score_rows(folder):
        groups.setdefault(score.group, []).append(score)
    return groups


def list_commands(run: IndexedRun) -> list[dict]:
    """Commands to continue with; `safe` ones get a copy button, as run folders are untrusted."""
    commands = []
    if run.facts.command:
        line, is_plain = format_command(run.facts.command)
        commands.append({"name": "this run", "text": line, "safe": is_plain})
    folder = str(run.folder)
    if not folder.isprintable() or not are_plain_overrides(run.facts.overrides):
        return commands  # the programs refuse to restore the run's options

    def add(name: str, program: str, option: str, *options: str) -> None:
        text = shlex.join(["sdft", program, format_override(option, folder), *options])
        commands.append({"name": name, "text": text, "safe": True})

    has_checkpoint = any(run.folder.glob("checkpoints/*.ckpt"))
    if run.state == "finished":
        add("reproduce", "train", "reproduce")
        if has_checkpoint and (steps := int(run.facts.numbers.get("steps", 0))):
            add("train longer", "train", "resume", f"steps={2 * steps}", "allow_config_change=true")
        add("evaluate", "evaluate", "run", *run.facts.missing_options)
    elif run.state in ("stopped", "failed") and has_checkpoint:
        add("resume", "train", "resume")
    return commands


def read_log_tail(folder: Path) -> list[str]:
    """The last lines of a sweep job's log."""
    try:
        lines = read_safe_bytes(folder, "log.txt").decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [to_text(line) for line in lines if line.strip()][-12:]


def summarize_data_sheet(folder: Path) -> list[tuple[str, str]]:
    """Entries of the data sheet, one line each."""
    entries = []
    for name, value in read_safe_json(folder, "data.json").items():
        if isinstance(value, dict):
            parts = [f"{to_text(key)} {format_data_value(one)}".strip() for key, one in list(value.items())[:12]]
            value = ("; " if any(isinstance(one, list) for one in value.values()) else ", ").join(parts)
        if text := format_data_value(value):
            entries.append((to_text(name), text))
    return entries[:24]


def format_data_value(value) -> str:
    """Text, a number, or a list of these."""
    return ", ".join(filter(None, map(to_text, value[:12]))) if isinstance(value, list) else to_text(value)


def list_run_files(run: IndexedRun) -> list[dict]:
    """Files at the top of a run's folder and in its subfolders, with sizes."""
    top: dict[str, dict] = {}
    count = 0
    for parent, folders, names in os.walk(run.folder):
        folders[:] = sorted(name for name in folders if is_visible_name(name))
        inner = Path(parent).relative_to(run.folder).parts
        for name in sorted(filter(is_visible_name, names)):
            count += 1
            if count > MAX_COUNTED_FILES or (size := get_file_size(os.path.join(parent, name))) is None:
                continue
            parts = (*inner, name)
            opens = Path(name).suffix.lower() in CONTENT_TYPES
            file = {"name": "/".join(parts[1:] or parts), "bytes": size, "size": format_byte_size(size)}
            file["link"] = f"/file/{quote_path('/'.join((run.id, *parts)))}" if opens else ""
            entry = top.setdefault(parts[0], {"name": parts[0], "bytes": 0, "count": 0, "files": []})
            if inner:
                entry["bytes"] += size
                entry["count"] += 1
                if len(entry["files"]) < MAX_LISTED_FILES:
                    entry["files"].append(file)
            else:
                top[parts[0]] = file | {"count": 0, "files": []}
    return [entry | {"size": format_byte_size(entry["bytes"])} for _, entry in sorted(top.items())]


def get_file_size(path: str) -> int | None:
    """Size in bytes of a regular file, else None."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def collect_samples(run: IndexedRun) -> dict:
    """URLs of the images of every step, by prompt and seed."""
    images: dict[tuple[str, str], dict[int, str]] = {}
    steps = list_sample_steps(run.folder)
    for step in steps:
        for number, sample in enumerate(list_sample_images(run.folder, step)):
            name = (sample.prompt, sample.seed) if sample.prompt else (f"image {number + 1}", "")
            images.setdefault(name, {})[step] = f"/file/{quote_path(run.id)}/{quote_path(sample.file)}"
    rows = [
        {"prompt": prompt, "seed": seed, "files": [files.get(step, "") for step in steps]}
        for (prompt, seed), files in images.items()
    ]
    return {"steps": steps, "rows": rows}
