"""A run's result as a folder for others: card, pictures, weights in both formats, and nothing of this machine."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from omegaconf import DictConfig

import sdft.runs.samples as drawn
from sdft.apps.publish.card_sections import (
    render_data_section,
    render_license_section,
    render_scores_section,
    render_settings_section,
    render_tools_section,
    render_trigger_section,
)
from sdft.config import check_secret
from sdft.evaluation.variants import BEST
from sdft.models.safetensors_check import check_safetensors
from sdft.runs.files import read_config, read_json
from sdft.training.export.model_card import REPRODUCTION_NOTE, ModelCard
from sdft.training.export.modelspec import MODELSPEC_ADAPTER_TYPES, build_modelspec_metadata, write_header_metadata
from sdft.training.export.trigger_words import find_trigger_words, to_printable_line

PUBLISHED_FOLDER = "published"  # the folder in the run
LICENSES = """creativeml-openrail-m openrail openrail++ bigscience-openrail-m apache-2.0 mit bsd-3-clause gpl-3.0 agpl-3.0
    lgpl-3.0 cc0-1.0 cc-by-4.0 cc-by-sa-4.0 cc-by-nc-4.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-nc-nd-4.0 unlicense other"""
REPO_ID_PATTERN = r"[\w-][\w.-]*/[\w.-]+"
PATH_OPTIONS = ("path", "class_path", "resume", "reproduce", "folder", "dir", "prompts_file")  # words that name folders
PATH_PATTERN = re.compile(r"(^|[\s\[=,:'\"])(~|\.{0,2}[/\\]|[A-Za-z]:[/\\])")  # begins a path
MAX_IMAGES = 8  # of the last samples


@dataclass
class PublishRequest:
    """What of a run is published and how; `to` is where its readers will find it, USER/NAME on the hub."""

    run: Path
    to: str | None = None
    license: str | None = None
    best: bool = False
    captions: bool = True

    def __post_init__(self):
        if self.to is not None and not re.fullmatch(REPO_ID_PATTERN, self.to):
            raise ValueError(f"to={self.to}: give USER/NAME, as the hub calls a repository")
        if self.license is not None and self.license not in LICENSES.split():
            raise ValueError(f"license={self.license}: choose one of {', '.join(LICENSES.split())}")


def write_publication(asked: PublishRequest) -> Path:
    """The folder, made anew; `ValueError` for a run without a result, or where something of this machine would be in it."""
    run, facts = asked.run, read_json(asked.run / "run.json")
    if facts.get("state") != "finished" or not (run / "config.yaml").is_file():
        raise ValueError(f"run={run}: no finished run there ({facts.get('state', 'no run.json')}); give a run's folder")
    config = read_config(run)
    kind = find_output_kind(run)
    source = run / (BEST if asked.best else kind)
    if not source.is_dir():
        raise ValueError(f"best=true: {run} has no {BEST}/; train with evaluate_every=N checkpoint_metric=SCORE")
    if links := [file for file in source.rglob("*") if file.is_symlink()]:
        raise ValueError(f"publish: {links[0]} is a link; only files of the run itself are given to others")
    partial = run / f".{PUBLISHED_FOLDER}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(source, partial, ignore=shutil.ignore_patterns("README.md", "samples.png", ".*"))
        copy_images(run, partial)
        card = build_card(asked, config, facts, kind, partial)
        (partial / "README.md").write_text(card.text(), encoding="utf-8")
        if kind in MODELSPEC_ADAPTER_TYPES:
            write_header_metadata(partial, build_header_metadata(asked, facts, kind))
        check_publication(partial)
        shutil.rmtree(run / PUBLISHED_FOLDER, ignore_errors=True)
        os.replace(partial, run / PUBLISHED_FOLDER)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return run / PUBLISHED_FOLDER


def find_output_kind(run: Path) -> str:
    """The folder that the run's method has filled."""
    for kind in ("adapter", "embedding", "pipeline"):
        if (run / kind).is_dir():
            return kind
    raise ValueError(f"run={run}: it has no adapter/, embedding/ or pipeline/; it did not finish")


def copy_images(run: Path, folder: Path) -> None:
    """The sheet of samples, the newest of them one by one, and the evaluation's."""
    shutil.copyfile(run / "samples.png", folder / "samples.png")
    for number, file in enumerate(latest_sample_files(run)[:MAX_IMAGES]):
        (folder / "images").mkdir(exist_ok=True)
        shutil.copyfile(file, folder / "images" / f"{number}.png")
    if (run / "evaluation" / "images.png").is_file():
        shutil.copyfile(run / "evaluation" / "images.png", folder / "evaluation.png")


def latest_sample_files(run: Path) -> list[Path]:
    """The files of the last samples."""
    place = drawn.find_last_samples(run)
    return sorted(place.glob("*.png")) if place else []


def build_card(asked: PublishRequest, config: DictConfig, facts: dict, kind: str, folder: Path) -> ModelCard:
    run, prompts, found = asked.run, drawn.read_sample_prompts(asked.run), find_trigger_words(asked.run)
    name = re.sub(r"[^\w .+-]", "", config.name) or "result"
    base = to_printable_line(facts.get("base") or config.model.name)
    base = Path(base).name if Path(base).expanduser().exists() else base
    method, best = config.method.get("_target_", "").rpartition(".")[2].lower(), facts.get("best") or {}
    images = sorted((folder / "images").glob("*.png"), key=lambda file: int(file.stem))
    widget = [
        {"text": prompt, "output": {"url": f"images/{file.name}"}}
        for file, prompt in zip(images, prompts, strict=False)
    ]
    front = {
        "base_model": base if re.fullmatch(REPO_ID_PATTERN, base) else None,
        "license": asked.license,
        "instance_prompt": found[0] if found else None,
        "tags": ["stable-diffusion", "text-to-image", method, "diffusers"],
        "widget": widget or None,
    }
    return ModelCard(
        result=kind,
        name=name,
        base=base,
        prediction=facts["prediction_type"],
        method=method,
        steps=best["step"] if asked.best and best else facts["steps"],
        resolution=facts["resolution"],
        prompt=prompts[0] if prompts else "",
        sampling=SimpleNamespace(**config.sampling),
        command=redact_command(facts["command"]),
        dora=bool(config.method.get("use_dora")),
        load_path=asked.to or ".",
        reproduction_note="" if asked.best else REPRODUCTION_NOTE,
        front_matter=front,
        leading_sections=[
            render_license_section(asked.license, base),
            *render_trigger_section(found),
            render_data_section(run, facts, asked.captions),
            *render_scores_section(run, folder),
        ],
        trailing_sections=[*render_tools_section(kind, name, found), render_settings_section(facts)],
    )


def build_header_metadata(asked: PublishRequest, facts: dict, kind: str) -> dict[str, str]:
    """Of the weights' headers: what training wrote, and what is known only now."""
    step = (facts.get("best") or {}).get("step") if asked.best else None
    words = build_modelspec_metadata(asked.run, kind, step, asked.captions)
    now = {"modelspec.date": facts.get("ended"), "modelspec.license": asked.license}
    now |= {"modelspec.author": asked.to.split("/")[0] if asked.to else None}
    now |= {"ss_training_started_at": facts.get("started"), "ss_training_finished_at": facts.get("ended")}
    return words | {key: value for key, value in now.items() if value}


def redact_command(command: list[str]) -> list[str]:
    """The command without what it says of this machine."""
    kept = []
    for word in map(to_printable_line, command):
        key, equals, value = word.partition("=")
        named = key.lstrip("+").rpartition(".")[2] in PATH_OPTIONS or PATH_PATTERN.search(value)
        there = bool(value) and len(value) < 250 and Path(value).expanduser().exists()
        kept.append(f"{key}{equals}…" if equals and (named or there) else Path(word).name if not equals else word)
    return kept


def check_publication(folder: Path) -> None:
    """`ValueError` for a place of this machine, a secret of its environment, or weights that are no safetensors."""
    places = {str(path) for path in (Path.home(), Path.cwd(), folder.resolve().parent) if len(path.parts) > 1}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder)
        if file.suffix == ".safetensors":
            check_safetensors(file, "publish")
            with open(file, "rb") as opened:
                text = opened.read(int.from_bytes(opened.read(8), "little")).decode()
        elif file.suffix in (".json", ".md", ".txt"):
            text = file.read_text(encoding="utf-8")
        elif file.suffix == ".png":
            continue
        else:
            raise ValueError(f"publish: {name} is neither weights, text nor a picture; it is not given to others")
        check_secret(f"publish: {name}", text)
        for place in places:
            if re.search(rf"{re.escape(place)}(?![\w-])", text):
                raise ValueError(f"publish: {name} names {place}, a folder of this machine; others need not know")
