"""Base against fine-tuned on the same prompts and seeds: a table, `scores.json`, and the pictures side by side."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from sdft.data.view import split, worded
from sdft.prompts import read_prompts
from sdft.sampling import Sampling, labelled

ASKED = ("data", "method", "model", "metrics", "sampling", "prior")  # of a run's config; the rest was about training
REFERENCES = 64  # training pictures that CLIP-I compares with


@dataclass
class Scoring:
    """`clip` judges (see `sdft.metrics.clip.Clip`); `images` pictures are made of each prompt."""

    clip: str
    pretrained: str | None = None
    images: int = 4

    def judge(self, device: str = "cpu"):
        from sdft.metrics.clip import Clip

        return Clip(self.clip, self.pretrained, device)

    def __post_init__(self):
        if self.images < 1:
            raise ValueError(f"metrics.images={self.images}: choose 1 or more")


def evaluate(run: Path, cfg: DictConfig, prompts: list[str] | None = None, judge=None) -> dict:
    """Score the result of `run`, whose config is `cfg`; returns and writes `RUN/evaluation/scores.json`.

    Prompts are those given, else the questions of the data (digits left out of the training set), else the run's.
    """
    torch.manual_seed(cfg.seed)
    scoring, source = instantiate(cfg.metrics), worded(instantiate(cfg.data), cfg.get("template"))
    method, model = instantiate(cfg.method), instantiate(cfg.model)
    device = "cuda" if torch.cuda.is_available() and cfg.accelerator != "cpu" else "cpu"
    model.to(device)
    questions = None if prompts else source.questions()
    classes = [cfg.prior.prompt] if cfg.get("prior") else []
    prompts = prompts or (questions.prompts if questions else read_prompts(cfg.prompts) or source.prompts() + classes)
    sampling = dataclasses.replace(instantiate(cfg.sampling), images=scoring.images)
    metrics = suite(judge or scoring.judge(device), split(source, cfg.get("held_out", 0))[0], questions)
    pictures = {"base": list(sampling(model, prompts, cfg.resolution))}
    method.load(model, run / method.result)
    model.to(device)
    pictures["fine-tuned"] = list(sampling(model, prompts, cfg.resolution))

    meant = (questions and questions.meant) or prompts
    asked = [prompt for prompt, _ in sampling.requests(meant)]
    scores = {key: score(metrics, made, asked) for key, made in pictures.items()}
    report = {
        "run": run.name,
        "prompts": prompts,
        "images_per_prompt": scoring.images,
        "judge": scoring.clip,
        "sampling": dataclasses.asdict(sampling),
        "scores": scores,
        "reference": references(metrics),
    }
    folder = run / "evaluation"
    folder.mkdir(exist_ok=True)
    (folder / "scores.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    side_by_side(pictures, prompts, sampling).save(folder / "base_and_fine-tuned.png")
    print(table(scores, report["reference"], {name: metric.form for name, metric in metrics.items()}))
    return report


def suite(clip, source, questions) -> dict:
    """The metrics by the name they have in the table."""
    from sdft.metrics.distribution import CMMD
    from sdft.metrics.prompt import PromptScore
    from sdft.metrics.subject import SubjectScore
    from sdft.metrics.zero_shot import ZeroShot

    metrics = {}
    if questions:
        axes = next(iter(questions.answers.values()))
        metrics = {axis: ZeroShot(clip, questions.answers, axis) for axis in axes}
        metrics |= {" and ".join(axes): ZeroShot(clip, questions.answers)} if len(axes) > 1 else {}
        if questions.real:
            metrics["CMMD"] = CMMD(clip, [questions.real[i].image for i in range(len(questions.real))])
    step = max(1, len(source) // REFERENCES)
    taught = [source[i].image for i in range(0, len(source), step)][:REFERENCES]
    return metrics | {"CLIP-T": PromptScore(clip), "CLIP-I": SubjectScore(clip, taught)}


def references(metrics: dict) -> dict[str, float]:
    """What real pictures score against each other, where that can be asked."""
    alone = len(metrics["CLIP-I"].references) < 2
    asked = {n: m for n, m in metrics.items() if hasattr(m, "real_vs_real") and not (alone and n == "CLIP-I")}
    return {name: round(metric.real_vs_real(), 4) for name, metric in asked.items()}


def score(metrics: dict, pictures: list[Image.Image], prompts: list[str]) -> dict[str, float]:
    scores = {}
    for name, metric in metrics.items():
        metric.reset()
        metric.update(pictures, prompts)
        scores[name] = round(float(metric.compute()), 4)
    return scores


def side_by_side(
    pictures: dict[str, list[Image.Image]], prompts: list[str], sampling: Sampling, most: int = 4
) -> Image.Image:
    """A column a prompt (at most ten); above the base's first images, below the fine-tuned ones."""
    shown = min(most, sampling.images)
    rows = [
        (f"{name} {i + 1}" if shown > 1 else name, made[i :: sampling.images][:10])
        for name, made in pictures.items()
        for i in range(shown)
    ]
    return labelled(rows, prompts[:10], tile=96)


def table(scores: dict[str, dict[str, float]], reference: dict[str, float], forms: dict[str, str]) -> str:
    """Rows of base and fine-tuned values, each in its metric's form, with what real pictures score."""
    lines = [f"{'':<24}{'base':>10}{'fine-tuned':>13}{'real':>9}"]
    for name, form in forms.items():
        base, tuned = (form.format(scores[key][name]) for key in ("base", "fine-tuned"))
        real = form.format(reference[name]) if name in reference else ""
        lines.append(f"{name:<24}{base:>10}{tuned:>13}{real:>9}".rstrip())
    return "\n".join(lines)


def newest_run(outputs: Path = Path("outputs")) -> Path:
    """The run that finished last."""
    runs = [file.parent for file in outputs.glob("*/*/run.json") if json.loads(file.read_text())["state"] == "finished"]
    if not runs:
        raise ValueError(f"run=null: no finished run in {outputs}/; train one first, or give run=FOLDER")
    return max(runs, key=lambda run: (run / "run.json").stat().st_mtime)


def config_of(run: Path, metrics, images: int | None) -> DictConfig:
    """The config that `run` was trained with, judged by `metrics` when they are given."""
    file = run / "config.yaml"
    if not file.is_file():
        raise ValueError(f"run={run}: not a run folder (no config.yaml)")
    whole = OmegaConf.load(file)
    cfg = OmegaConf.create({k: v for k, v in whole.items() if k in ASKED or not OmegaConf.is_dict(v)})
    cfg.metrics = metrics or cfg.metrics
    if not cfg.metrics:
        raise ValueError(
            "metrics=null: this run was trained without a judge; choose metrics=clip, or metrics=digits for digits"
        )
    if images is not None:
        cfg.metrics.images = images
    return cfg
