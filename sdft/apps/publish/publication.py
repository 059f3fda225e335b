"""Write a run's result as a folder to publish: model card, images, weights in both formats, and no local paths or secrets."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from sdft.apps.publish.card_sections import (
    render_data_section,
    render_license_section,
    render_scores_section,
    render_settings_section,
    render_tools_section,
    render_trigger_section,
)
from sdft.apps.publish.private_content import check_publication
from sdft.evaluation.variants import BEST
from sdft.models.sampling import GEOMETRY_OPTIONS
from sdft.runs.evaluations import choose_main_evaluation, is_outdated, read_evaluations
from sdft.runs.files import is_local_path, replace_folder
from sdft.runs.metadata import read_record
from sdft.runs.run_config import read_stored_config
from sdft.runs.samples import find_last_samples, read_sample_prompts
from sdft.training.export.model_card import REPRODUCTION_NOTE, ModelCard, get_method_tag
from sdft.training.export.modelspec import MODELSPEC_ADAPTER_TYPES, build_modelspec_metadata, write_header_metadata
from sdft.training.export.trigger_words import find_trigger_words, to_printable_line

PUBLISHED_FOLDER = "published"  # in the run folder
LICENSES = """creativeml-openrail-m openrail openrail++ bigscience-openrail-m apache-2.0 mit bsd-3-clause gpl-3.0 agpl-3.0
    lgpl-3.0 cc0-1.0 cc-by-4.0 cc-by-sa-4.0 cc-by-nc-4.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-nc-nd-4.0 unlicense other"""
REPO_ID_PATTERN = r"[\w-][\w.-]*/[\w.-]+"
PATH_OPTIONS = ("path", "class_path", "resume", "reproduce", "folder", "dir", "prompts_file")  # options with paths
PATH_PATTERN = re.compile(r"(?<!\w)(~|\.{0,2}[/\\]|[A-Za-z]:[/\\])")  # start of a path
MAX_IMAGES = 8  # sample images in the card
PUBLISHED_FACTS = ("command", "options", "steps", "epochs", "images", "resolution", "prediction_type")  # of run.json
CONFIG_STRUCTURE = {
    "caption_template?": (str, type(None)),
    "name": str,
    "model": {"name": str},
    "method": {"_target_": str},
    "sampling": {"steps": int, "guidance_scale": (int, float), "scheduler?": (str, type(None))}
    | {f"{option}?": (list, type(None)) for option in GEOMETRY_OPTIONS},
}


@dataclass
class PublishRequest:
    """What to publish of a run; `to` is the repository on the hub, USER/NAME."""

    run: Path
    to: str | None = None
    license: str | None = None
    best: bool = False
    captions: bool = True

    def __post_init__(self):
        if self.to is not None and not re.fullmatch(REPO_ID_PATTERN, self.to):
            raise ValueError(f"to={self.to}: not a hub repository; give USER/NAME")
        if self.license is not None and self.license not in LICENSES.split():
            raise ValueError(f"license={self.license}: choose one of {', '.join(LICENSES.split())}")


def write_publication(request: PublishRequest) -> Path:
    """Write and return the folder. Raises `ValueError` for an unfinished run, or if it would include local paths or secrets."""
    run, record = request.run, read_record(request.run, *PUBLISHED_FACTS)
    if record["state"] != "finished":
        raise ValueError(f"run={run}: not a finished run ({record['state']}); give a run folder")
    config = read_stored_config(run, CONFIG_STRUCTURE)
    kind = find_output_kind(run)
    source = run / (BEST if request.best else kind)
    if not source.is_dir():
        raise ValueError(f"best=true: {run} has no {BEST}/; train with evaluate_every=N checkpoint_metric=SCORE")
    if links := [file for file in source.rglob("*") if file.is_symlink()]:
        raise ValueError(f"publish: {links[0]} is a link; only regular files are published")
    with replace_folder(run / PUBLISHED_FOLDER) as partial:
        shutil.copytree(source, partial, ignore=shutil.ignore_patterns("README.md", "samples.png", ".*"))
        report = choose_main_evaluation([report for report in read_evaluations(run) if not is_outdated(report)])
        copy_images(run, report, partial)
        card = build_card(request, config, record, kind, report, partial)
        (partial / "README.md").write_text(card.render(), encoding="utf-8")
        if kind in MODELSPEC_ADAPTER_TYPES:
            write_header_metadata(partial, build_header_metadata(request, record, kind))
        check_publication(partial)
    return run / PUBLISHED_FOLDER


def find_output_kind(run: Path) -> str:
    """The kind of the run's result: adapter, embedding or pipeline."""
    for kind in ("adapter", "embedding", "pipeline"):
        if (run / kind).is_dir():
            return kind
    raise ValueError(f"run={run}: no adapter/, embedding/ or pipeline/; the run did not finish")


def copy_images(run: Path, report: dict | None, folder: Path) -> None:
    """Copy the contact sheet, the latest sample images, and the images of the evaluation `report`."""
    shutil.copyfile(run / "samples.png", folder / "samples.png")
    for number, file in enumerate(latest_sample_files(run)[:MAX_IMAGES]):
        (folder / "images").mkdir(exist_ok=True)
        shutil.copyfile(file, folder / "images" / f"{number}.png")
    if report and (report["path"] / "images.png").is_file():
        shutil.copyfile(report["path"] / "images.png", folder / "evaluation.png")


def latest_sample_files(run: Path) -> list[Path]:
    """The image files of the last sampled step."""
    folder = find_last_samples(run)
    return sorted(folder.glob("*.png")) if folder else []


def build_card(
    request: PublishRequest, config: dict, record: dict, kind: str, report: dict | None, folder: Path
) -> ModelCard:
    run, prompts, triggers = request.run, read_sample_prompts(request.run), find_trigger_words(request.run)
    name = re.sub(r"[^\w .+-]", "", config["name"]) or "result"
    base = to_printable_line(record.get("base") or config["model"]["name"])
    base_name = Path(base).name if is_local_path(base) else base
    method, best = get_method_tag(config["method"]["_target_"].rpartition(".")[2]), record.get("best") or {}
    images = sorted((folder / "images").glob("*.png"), key=lambda file: int(file.stem))
    widget = [
        {"text": prompt, "output": {"url": f"images/{file.name}"}}
        for file, prompt in zip(images, prompts, strict=False)
    ]
    dora = bool(config["method"].get("use_dora"))
    front_matter = {
        "base_model": base_name if re.fullmatch(REPO_ID_PATTERN, base_name) else None,
        "license": request.license,
        "instance_prompt": triggers[0] if triggers else None,
        "widget": widget or None,
    }
    return ModelCard(
        result=kind,
        name=name,
        base=base,
        prediction=record["prediction_type"],
        method=method,
        steps=best["step"] if request.best and best else record["steps"],
        resolution=record["resolution"],
        prompt=prompts[0] if prompts else "",
        sampling=SimpleNamespace(**config["sampling"]),
        command=redact_command(record["command"]),
        dora=dora,
        pipeline=record.get("pipeline"),
        empty_caption=record.get("empty_caption"),
        token=config["method"].get("placeholder_token"),
        clip_skip=record.get("clip_skip", {}).get("diffusers", 0),
        load_path=request.to or ".",
        reproduction_note="" if request.best or config["sampling"].get("scheduler") else REPRODUCTION_NOTE,
        front_matter=front_matter,
        leading_sections=[
            render_license_section(request.license, base_name),
            *render_trigger_section(triggers),
            render_data_section(run, record, request.captions),
            *render_scores_section(report, folder),
        ],
        trailing_sections=[*render_tools_section(kind, name, triggers, dora), render_settings_section(record)],
    )


def build_header_metadata(request: PublishRequest, record: dict, kind: str) -> dict[str, str]:
    """Metadata of the weights' headers: that of training, and license, author and dates."""
    step = (record.get("best") or {}).get("step") if request.best else None
    metadata = build_modelspec_metadata(request.run, kind, step, request.captions)
    extra = {"modelspec.date": record.get("ended"), "modelspec.license": request.license}
    extra |= {"modelspec.author": request.to.split("/")[0] if request.to else None}
    extra |= {"ss_training_started_at": record.get("started"), "ss_training_finished_at": record.get("ended")}
    return metadata | {key: value for key, value in extra.items() if value}


def redact_command(command: list[str]) -> list[str]:
    """Replace local paths in a command line by `…`."""
    redacted = []
    for argument in map(to_printable_line, command):
        key, equals, value = argument.partition("=")
        is_path = key.lstrip("+").rpartition(".")[2] in PATH_OPTIONS or PATH_PATTERN.search(value)
        hidden = f"{key}{equals}…" if is_path or is_local_path(value) else argument
        redacted.append(hidden if equals else Path(argument).name)
    return redacted
