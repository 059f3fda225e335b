"""Compare base and fine-tuned model on the same prompts and seeds: a table, `scores.json`, images and an HTML report."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from PIL import Image

import sdft.distributed as processes
from sdft.data.transforms import apply_caption_template, split_validation
from sdft.distributed import select_device
from sdft.evaluation.evaluator import Evaluator
from sdft.evaluation.protocol import (
    PromptGroup,
    build_prompt_groups,
    build_protocol,
    select_evaluation_spec,
)
from sdft.evaluation.report import write_comparison_image, write_report
from sdft.evaluation.scorers import Scorers
from sdft.evaluation.statistics import (
    compute_paired_difference,
    format_score,
    format_score_table,
    get_result_state,
    to_json_number,
)
from sdft.evaluation.variant_images import generate_variant_images
from sdft.evaluation.variants import ModelVariant
from sdft.models.sampling import Sampling
from sdft.runs.evaluations import (
    EVALUATION_FOLDER,
    SCORES_FORMAT,
    choose_evaluation_folder,
    describe_result,
    drop_batch_size,
    write_scores,
)
from sdft.runs.terminal import print_text

METRIC_FIELDS = ("number_format", "higher_is_better", "description", "baseline")  # in scores.json


def evaluate(folder: Path, cfg: DictConfig, states: list[ModelVariant], scorers: Scorers | None = None) -> dict | None:
    """Score every state; the first is the base. Return the report, and write it with images and page to a folder of its own.

    That is `folder` for the first evaluation, and that of an equal one if there is one; `report["folder"]` is its name.

    All ranks generate images; only rank 0 scores, the others return None.

    `cfg` is a run's config, or has its keys model, data, metrics, protocol, sampling, resolution and seed.
    """
    source = processes.compute_on_node(
        lambda: apply_caption_template(instantiate(cfg.data), cfg.get("caption_template"))
    )
    protocol = build_protocol(cfg)
    evaluation_spec = source.evaluation_spec()
    training_images = split_validation(source, cfg.get("validation_split", 0))[0]
    groups = build_prompt_groups(cfg, protocol, evaluation_spec, source)
    sampling = dataclasses.replace(instantiate(cfg.sampling), images=protocol.images)
    device = select_device(cfg.accelerator)
    if scorers is None and processes.rank() == 0:
        scorers = instantiate(cfg.metrics).load_scorers(device)
    files = {
        state.label: state_files
        for state, state_files in generate_variant_images(folder, cfg, states, groups, sampling, device)
    }
    if processes.rank():
        return None
    settings = describe_settings(cfg, states, groups, sampling)
    first, folder = folder, choose_evaluation_folder(folder, settings)
    spec = select_evaluation_spec(evaluation_spec, groups)
    evaluator = Evaluator(scorers, protocol, groups, training_images, spec)
    report = build_evaluation_report(evaluator, states, files, sampling, folder)
    parts = folder.absolute().parts
    report["run"] = " · ".join(parts[-3:-1]) if folder.name.startswith(EVALUATION_FOLDER) else folder.name
    report |= {"folder": folder.name, "settings": settings}
    if result := describe_result(folder.parent):
        report["result"] = result
    write_scores(folder, report)
    write_comparison_image(folder, files, groups[0], sampling)
    print_text(*format_score_table(report))
    write_report(folder, first, report, evaluator, files)
    print_text(f"report     {folder / 'report.html'}")
    return report


def describe_settings(
    cfg: DictConfig, states: list[ModelVariant], groups: list[PromptGroup], sampling: Sampling
) -> str:
    """Hash of everything that distinguishes the evaluations of a run: an equal one replaces the earlier one."""
    options = {key: OmegaConf.to_container(cfg[key]) for key in ("model", "metrics", "data") if cfg.get(key)}
    sizes = {key: cfg.get(key) for key in ("resolution", "caption_template", "validation_split")}
    variants = [(state.label, state.scale, state.step) for state in states]
    prompts = {group.name: group.prompts for group in groups}
    content = json.dumps([options, sizes, variants, prompts, drop_batch_size(sampling.to_dict())], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def load_images(files: dict[str, list[Path]]) -> dict[str, list[Image.Image]]:
    return {group: [Image.open(path).convert("RGB") for path in paths] for group, paths in files.items()}


def build_evaluation_report(
    evaluator: Evaluator,
    states: list[ModelVariant],
    files: dict[str, dict[str, list[Path]]],
    sampling: Sampling,
    folder: Path,
) -> dict:
    """Score the images of every state; return the content of `scores.json`."""
    base, state_reports = None, []
    for state in states:
        images = load_images(files[state.label])
        if base is None:
            evaluator.build_metrics(images)
        scores = evaluator.compute_scores(images)
        base = base or scores
        differences = {} if state is states[0] else compute_score_differences(base, scores, evaluator.images)
        image_folder = files[state.label][evaluator.groups[0].name][0].parent
        facts = {
            "label": state.label,
            "scale": state.scale,
            "step": state.step,
            "image_folder": os.path.relpath(image_folder, folder),
        }
        state_reports.append(facts | {"scores": scores, "difference": differences})
    references = {
        group: {name: to_json_number(value) for name, value in values.items()}
        for group, values in evaluator.compute_references().items()
    }
    return {
        "schema": SCORES_FORMAT,
        "scorers": evaluator.scorers.get_model_names(),
        "images": evaluator.images,
        "sampling": sampling.to_dict(),
        "groups": {group.name: group.prompts for group in evaluator.groups},
        "metrics": {
            group: {name: {key: getattr(metric, key) for key in METRIC_FIELDS} for name, metric in metrics.items()}
            for group, metrics in evaluator.metrics.items()
        },
        "states": state_reports,
        "reference": references,
        "missing": evaluator.scorers.missing,
    }


def compute_score_differences(base: dict, scores: dict, images: int) -> dict:
    """Paired differences to the base by group and name; metrics without per-image values have none."""
    differences = {
        group: {name: compute_paired_difference(base[group][name], score, images) for name, score in rows.items()}
        for group, rows in scores.items()
    }
    return {group: {name: gain for name, gain in rows.items() if gain} for group, rows in differences.items()}


def format_runs_table(reports: dict[Path, dict]) -> list[str]:
    """One line per run: the scores of its result on the group `prompts`; empty cells for metrics it does not have."""
    names = list(dict.fromkeys(name for report in reports.values() for name in report["metrics"]["prompts"]))
    lines = [f"{'run':<32}" + "".join(f"{name:>16}" for name in names)]
    for folder, report in reports.items():
        scores, metrics = get_result_state(report)["scores"]["prompts"], report["metrics"]["prompts"]
        cells = [
            format_score(scores[name]["value"], metrics[name]["number_format"]) if name in scores else ""
            for name in names
        ]
        lines.append(f"{folder.parent.name:<32}" + "".join(f"{cell:>16}" for cell in cells))
    return lines
