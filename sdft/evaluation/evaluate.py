"""Base against fine-tuned on the same prompts and seeds: a table, `scores.json`, pictures, and a page."""

import dataclasses
import json
import os
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from PIL import Image

import sdft.distributed as processes
from sdft.data.dataset import EvaluationSpec, ImageDataset
from sdft.data.prompts import read_prompts
from sdft.data.transforms import apply_caption_template, split_validation
from sdft.evaluation.evaluator import Evaluator, Scorers
from sdft.evaluation.plots.image_grid import build_labeled_grid
from sdft.evaluation.protocol import EvaluationProtocol, PromptGroup, extract_token_and_class
from sdft.evaluation.report import write_report
from sdft.evaluation.statistics import (
    compute_paired_difference,
    format_score,
    format_score_table,
    get_result_state,
    to_json_number,
)
from sdft.evaluation.variants import BASE, ModelVariant, scale_adapters
from sdft.models.image_cache import (
    collect_image_settings,
    format_folder_name,
    format_image_name,
    generate_missing_images,
)
from sdft.models.sampling import Sampling
from sdft.runs.files import atomic_write
from sdft.training.strategy import select_device

SCORES_SCHEMA_VERSION = 1  # of scores.json
BASE_IMAGE_CACHE = Path("outputs/cache/images")  # the base's, for every run on it


def evaluate(folder: Path, cfg: DictConfig, states: list[ModelVariant], scorers: Scorers | None = None) -> dict | None:
    """Score every state; the first is the base. Returns and writes `folder/scores.json`, with pictures and page beside it.

    Of several processes all draw, and only the first scores; the others return None.

    `cfg` is a run's config, or has its keys model, data, metrics, protocol, sampling, resolution and seed.
    """
    source, protocol = apply_caption_template(instantiate(cfg.data), cfg.get("caption_template")), build_protocol(cfg)
    evaluation_spec, taught = source.evaluation_spec(), split_validation(source, cfg.get("validation_split", 0))[0]
    groups = build_prompt_groups(cfg, protocol, evaluation_spec, source)
    sampling = dataclasses.replace(instantiate(cfg.sampling), images=protocol.images)
    device = select_device(cfg.accelerator)
    if scorers is None and processes.rank() == 0:
        scorers = instantiate(cfg.metrics).load_scorers(device)
    files = {
        state.label: drawn for state, drawn in generate_variant_images(folder, cfg, states, groups, sampling, device)
    }
    if processes.rank():
        return None
    exam = Evaluator(scorers, protocol, groups, taught, select_evaluation_spec(evaluation_spec, groups))
    report = build_evaluation_report(exam, states, files, sampling, folder)
    report["run"] = " · ".join(folder.absolute().parts[-3:-1]) if folder.name == "evaluation" else folder.name
    with atomic_write(folder / "scores.json") as file:
        file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with atomic_write(folder / "images.png") as file:
        build_comparison_image(files, groups[0], sampling).save(file, format="PNG")
    print(format_score_table(report))
    write_report(folder, report, exam, files)
    print(f"report   {folder / 'report.html'}")
    return report


def build_protocol(cfg: DictConfig) -> EvaluationProtocol:
    """What the config asks, with the words of a DreamBooth run for {token} and {class}."""
    token, noun = extract_token_and_class(cfg.get("instance_prompt"), cfg.get("class_prompt"))
    words = {"placeholder_token": cfg.get("placeholder_token") or token, "class_noun": noun}
    return instantiate(cfg.protocol, **{key: word for key, word in words.items() if word and not cfg.protocol.get(key)})


def build_prompt_groups(
    cfg: DictConfig, protocol: EvaluationProtocol, evaluation_spec: EvaluationSpec | None, source: ImageDataset
) -> list[PromptGroup]:
    class_prompts = [cfg.prior.prompt] if cfg.get("prior") else []
    return protocol.build_groups(evaluation_spec, read_prompts(cfg.prompts) or source.prompts(), class_prompts)


def select_evaluation_spec(evaluation_spec: EvaluationSpec | None, groups: list[PromptGroup]) -> EvaluationSpec | None:
    """The data's evaluation_spec, when the prompts are ones that it knows the answers to."""
    return (
        evaluation_spec
        if evaluation_spec and set(groups[0].scoring_prompts) <= set(evaluation_spec.caption_labels)
        else None
    )


def generate_variant_images(
    folder: Path,
    cfg: DictConfig,
    states: list[ModelVariant],
    groups: list[PromptGroup],
    sampling: Sampling,
    device: str,
):
    """Every state with its files by group. A model is loaded anew only where another has been put into it."""
    model, inside = None, BASE
    for state in states:
        if model is None or inside not in (BASE, state.source):
            torch.manual_seed(cfg.seed)
            model, inside = instantiate(cfg.model), BASE
        if inside != state.source:
            state.load(model)
            inside = state.source
        model.to(device)
        model.compute_dtype = instantiate(cfg.precision).dtype if cfg.get("precision") else torch.float32
        with scale_adapters(model, state.scale):
            yield state, generate_group_images(folder, state, groups, sampling, model, cfg.resolution)


def generate_group_images(
    folder: Path, state: ModelVariant, groups: list[PromptGroup], sampling: Sampling, model, resolution: int
) -> dict[str, list[Path]]:
    """The files of every group's pictures, prompt by prompt; only those are made that are not there."""
    settings = collect_image_settings(model, sampling, resolution)
    home = BASE_IMAGE_CACHE if state.source == BASE else folder / "images"
    requests = {group.name: sampling.requests(group.prompts) for group in groups}
    wanted = {format_image_name(*request): request for listed in requests.values() for request in listed}
    title = f"draw     {state.label}"
    made = generate_missing_images(
        wanted, sampling, model, resolution, home / format_folder_name(state.label, settings), settings, title
    )
    files = dict(zip(wanted, made, strict=True))
    return {name: [files[format_image_name(*request)] for request in listed] for name, listed in requests.items()}


def load_images(files: dict[str, list[Path]]) -> dict[str, list[Image.Image]]:
    return {group: [Image.open(path).convert("RGB") for path in paths] for group, paths in files.items()}


def build_evaluation_report(
    exam: Evaluator,
    states: list[ModelVariant],
    files: dict[str, dict[str, list[Path]]],
    sampling: Sampling,
    folder: Path,
) -> dict:
    """What `scores.json` holds."""
    base, told_states = None, []
    for state in states:
        pictures = load_images(files[state.label])
        if base is None:
            exam.build_metrics(pictures)
        scores = exam.compute_scores(pictures)
        base = base or scores
        gains = {} if state is states[0] else compute_score_differences(base, scores, exam.images)
        home = files[state.label][exam.groups[0].name][0].parent
        facts = {
            "label": state.label,
            "scale": state.scale,
            "step": state.step,
            "pictures": os.path.relpath(home, folder),
        }
        told_states.append(facts | {"scores": scores, "difference": gains})
    references = {
        g: {n: to_json_number(v) for n, v in values.items()} for g, values in exam.compute_references().items()
    }
    return {
        "schema": SCORES_SCHEMA_VERSION,
        "scorers": exam.scorers.get_model_names(),
        "images": exam.images,
        "sampling": sampling.to_dict(),
        "groups": {group.name: group.prompts for group in exam.groups},
        "metrics": {
            group: {
                name: {key: getattr(metric, key) for key in ("number_format", "higher_is_better", "what", "against")}
                for name, metric in metrics.items()
            }
            for group, metrics in exam.metrics.items()
        },
        "states": told_states,
        "reference": references,
        "missing": exam.scorers.missing,
    }


def compute_score_differences(base: dict, scores: dict, images: int) -> dict:
    found = {
        g: {n: compute_paired_difference(base[g][n], score, images) for n, score in rows.items()}
        for g, rows in scores.items()
    }
    return {group: {name: gain for name, gain in rows.items() if gain} for group, rows in found.items()}


def build_comparison_image(
    files: dict[str, dict[str, list[Path]]], group: PromptGroup, sampling: Sampling, most: int = 4
) -> Image.Image:
    """A column a prompt (at most ten); above the base's first images, below those of the other states."""
    shown = min(most, sampling.images)
    rows = [
        (
            f"{label} {i + 1}" if shown > 1 else label,
            [Image.open(path) for path in drawn[group.name][i :: sampling.images][:10]],
        )
        for label, drawn in files.items()
        for i in range(shown)
    ]
    return build_labeled_grid(rows, group.prompts[:10], tile=96)


def format_runs_table(reports: dict[Path, dict]) -> str:
    """A line a run: its result's scores of the prompts, which all were asked in the same way or not at all."""
    names = list(dict.fromkeys(name for report in reports.values() for name in report["metrics"]["prompts"]))
    lines = [f"{'run':<32}" + "".join(f"{name:>16}" for name in names)]
    for folder, report in reports.items():
        last, facts = get_result_state(report)["scores"]["prompts"], report["metrics"]["prompts"]
        cells = [
            format_score(last[name]["value"], facts[name]["number_format"]) if name in last else "" for name in names
        ]
        lines.append(f"{folder.parent.name:<32}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)
