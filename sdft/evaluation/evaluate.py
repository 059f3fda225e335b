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
from sdft.data.dataset import Questions, Source
from sdft.data.prompts import read_prompts
from sdft.data.transforms import split, worded
from sdft.evaluation.evaluator import Exam, Judges
from sdft.evaluation.plots.image_grid import labelled
from sdft.evaluation.protocol import Group, Protocol, token_and_class
from sdft.evaluation.report import write_page
from sdft.evaluation.statistics import difference, number, result_of, shown, table
from sdft.evaluation.variants import BASE, State, strength
from sdft.models.image_cache import make, name_of, place, settings_of
from sdft.models.sampling import Sampling
from sdft.runs.files import whole
from sdft.training.strategy import alone

SCHEMA = 1  # of scores.json
SHARED = Path("outputs/cache/pictures")  # the base's, for every run on it


def evaluate(folder: Path, cfg: DictConfig, states: list[State], judges: Judges | None = None) -> dict | None:
    """Score every state; the first is the base. Returns and writes `folder/scores.json`, with pictures and page beside it.

    Of several processes all draw, and only the first scores; the others return None.

    `cfg` is a run's config, or has its keys model, data, metrics, protocol, sampling, resolution and seed.
    """
    source, protocol = worded(instantiate(cfg.data), cfg.get("caption_template")), protocol_of(cfg)
    questions, taught = source.questions(), split(source, cfg.get("validation_split", 0))[0]
    groups = groups_of(cfg, protocol, questions, source)
    sampling = dataclasses.replace(instantiate(cfg.sampling), images=protocol.images)
    device = alone(cfg.accelerator)
    if judges is None and processes.rank() == 0:
        judges = instantiate(cfg.metrics).judges(device)
    files = {state.label: drawn for state, drawn in drawn_states(folder, cfg, states, groups, sampling, device)}
    if processes.rank():
        return None
    exam = Exam(judges, protocol, groups, taught, asked_here(questions, groups))
    report = examined(exam, states, files, sampling, folder)
    report["run"] = " · ".join(folder.absolute().parts[-3:-1]) if folder.name == "evaluation" else folder.name
    with whole(folder / "scores.json") as file:
        file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with whole(folder / "pictures.png") as file:
        side_by_side(files, groups[0], sampling).save(file, format="PNG")
    print(table(report))
    write_page(folder, report, exam, files)
    print(f"report   {folder / 'report.html'}")
    return report


def protocol_of(cfg: DictConfig) -> Protocol:
    """What the config asks, with the words of a DreamBooth run for {token} and {class}."""
    token, noun = token_and_class(cfg.get("instance_prompt"), cfg.get("class_prompt"))
    words = {"placeholder_token": cfg.get("placeholder_token") or token, "class_noun": noun}
    return instantiate(cfg.protocol, **{key: word for key, word in words.items() if word and not cfg.protocol.get(key)})


def groups_of(cfg: DictConfig, protocol: Protocol, questions: Questions | None, source: Source) -> list[Group]:
    class_prompts = [cfg.prior.prompt] if cfg.get("prior") else []
    return protocol.groups(questions, read_prompts(cfg.prompts) or source.prompts(), class_prompts)


def asked_here(questions: Questions | None, groups: list[Group]) -> Questions | None:
    """The data's questions, when the prompts are ones that it knows the answers to."""
    return questions if questions and set(groups[0].meant) <= set(questions.answers) else None


def drawn_states(
    folder: Path, cfg: DictConfig, states: list[State], groups: list[Group], sampling: Sampling, device: str
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
        model.compute = instantiate(cfg.precision).dtype if cfg.get("precision") else torch.float32
        with strength(model, state.scale):
            yield state, draw(folder, state, groups, sampling, model, cfg.resolution)


def draw(
    folder: Path, state: State, groups: list[Group], sampling: Sampling, model, resolution: int
) -> dict[str, list[Path]]:
    """The files of every group's pictures, prompt by prompt; only those are made that are not there."""
    settings = settings_of(model, sampling, resolution)
    home = SHARED if state.source == BASE else folder / "pictures"
    requests = {group.name: sampling.requests(group.prompts) for group in groups}
    wanted = {name_of(*request): request for listed in requests.values() for request in listed}
    title = f"draw     {state.label}"
    made = make(wanted, sampling, model, resolution, home / place(state.label, settings), settings, title)
    files = dict(zip(wanted, made, strict=True))
    return {name: [files[name_of(*request)] for request in listed] for name, listed in requests.items()}


def opened(files: dict[str, list[Path]]) -> dict[str, list[Image.Image]]:
    return {group: [Image.open(path).convert("RGB") for path in paths] for group, paths in files.items()}


def examined(
    exam: Exam, states: list[State], files: dict[str, dict[str, list[Path]]], sampling: Sampling, folder: Path
) -> dict:
    """What `scores.json` holds."""
    base, told_states = None, []
    for state in states:
        pictures = opened(files[state.label])
        if base is None:
            exam.begin(pictures)
        scores = exam.scores(pictures)
        base = base or scores
        gains = {} if state is states[0] else differences(base, scores, exam.images)
        home = files[state.label][exam.groups[0].name][0].parent
        facts = {
            "label": state.label,
            "scale": state.scale,
            "step": state.step,
            "pictures": os.path.relpath(home, folder),
        }
        told_states.append(facts | {"scores": scores, "difference": gains})
    references = {g: {n: number(v) for n, v in values.items()} for g, values in exam.references().items()}
    return {
        "schema": SCHEMA,
        "judges": exam.judges.names(),
        "images": exam.images,
        "sampling": sampling.told(),
        "groups": {group.name: group.prompts for group in exam.groups},
        "metrics": {
            group: {
                name: {key: getattr(metric, key) for key in ("form", "higher_is_better", "what", "against")}
                for name, metric in metrics.items()
            }
            for group, metrics in exam.metrics.items()
        },
        "states": told_states,
        "reference": references,
        "missing": exam.judges.missing,
    }


def differences(base: dict, scores: dict, images: int) -> dict:
    found = {g: {n: difference(base[g][n], score, images) for n, score in rows.items()} for g, rows in scores.items()}
    return {group: {name: gain for name, gain in rows.items() if gain} for group, rows in found.items()}


def side_by_side(
    files: dict[str, dict[str, list[Path]]], group: Group, sampling: Sampling, most: int = 4
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
    return labelled(rows, group.prompts[:10], tile=96)


def summary(reports: dict[Path, dict]) -> str:
    """A line a run: its result's scores of the prompts, which all were asked in the same way or not at all."""
    names = list(dict.fromkeys(name for report in reports.values() for name in report["metrics"]["prompts"]))
    lines = [f"{'run':<32}" + "".join(f"{name:>16}" for name in names)]
    for folder, report in reports.items():
        last, facts = result_of(report)["scores"]["prompts"], report["metrics"]["prompts"]
        cells = [shown(last[name]["value"], facts[name]["form"]) if name in last else "" for name in names]
        lines.append(f"{folder.parent.name:<32}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)
