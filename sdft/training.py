"""Build a run from its config, say what will happen, train, and tell what improved."""

import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sdft import processes
from sdft.build import build_module, build_samples, build_trainer, cheap_parts
from sdft.data.report import contact_sheet, report
from sdft.data.view import split, worded
from sdft.preflight import announce, inspect
from sdft.prompts import read_prompts
from sdft.record import Record


def train(cfg: DictConfig):
    """One run in the folder that Hydra made; returns the trained module.

    What a user can get wrong is refused before anything is written there.
    """
    check_name(cfg.name)
    folder, choices = Path(HydraConfig.get().runtime.output_dir), HydraConfig.get().runtime.choices
    if cfg.model == "none":
        raise ValueError("model=none: only evaluate.py does without; choose a model")
    parts, source = cheap_parts(cfg), worded(instantiate(cfg.data), cfg.template)
    loop, prior, strategy = parts["loop"], parts["prior"], parts["strategy"]
    if prior:
        prior.check_apart(cfg.data.get("path"))
    parts["precision"].check(strategy.trainer()["accelerator"])
    strategy.check(parts["method"].result, parts["precision"].trainer)
    if count := strategy.to_start():
        if status := processes.start(count, folder):
            sys.exit(status)
        return None
    processes.meet(strategy.on_cpu())
    folder = seen_by_all(processes.told(folder))
    checkpoint, (taught, spare) = loop.checkpoint(), split(source, cfg.held_out)
    prompts = read_prompts(cfg.prompts) or source.prompts() + ([prior.prompt] if prior else [])
    source.verify()
    parts["precision"].apply()
    torch.manual_seed(cfg.seed)
    model = instantiate(cfg.model)
    model.latent_shape(cfg.resolution)
    parts["method"].check(model, taught.captions())
    a_step = loop.samples_per_step(strategy.world())
    steps = loop.total(parts["stream"].plan(taught, model.unit, a_step))
    parts["schedule"].check(steps)
    check_unfinished(checkpoint, steps)

    classes, device = None, strategy.device()
    judging = processes.rank() == 0 or loop.evaluate_every
    judges = parts["metrics"].judges(str(device)) if cfg.metrics and judging else None
    exam = exam_on_the_way(cfg, judges, source, taught) if loop.evaluate_every else None
    if prior and prior.weight:
        model.to(device).compute = parts["precision"].dtype
        classes = prior.source(model, parts["sampling"], cfg.resolution)
        classes.verify()
    module = build_module(cfg, parts, model.cpu())  # what learns begins the same on every device
    model.to(device)
    samples = build_samples(parts, model, taught, classes, a_step)
    held_out = spare and parts["stream"].samples(spare, model, "held out ")
    cache(module, [*samples.parts, *([held_out] if spare else [])])
    trainer = build_trainer(cfg, parts, samples, held_out, folder, prompts, steps, exam)
    plan = inspect(module, samples, loop, parts["schedule"], trainer)
    plan["warnings"] += [f"{name} not measured: {why}" for name, why in (judges.missing if judges else {}).items()]
    record, words = Record(folder), flat(cfg, choices)
    if trainer.is_global_zero:
        open_run(
            record, plan, cfg, f"{title(choices, cfg)} · {source.describe()}", samples.parts[0], model, trainer, words
        )
    try:
        fit(module, samples, trainer, loop, checkpoint, record, words)
        release(module, trainer)
        closing(record, cfg, module.method, judges, bool(spare), trainer.loggers)
        record.end("finished")
    finally:
        close_dashboards()
    return module


def seen_by_all(folder: Path) -> Path:
    """`ValueError` when a process on another machine has no way to the run's folder."""
    if hidden := [str(number) for number, seen in enumerate(processes.everywhere(folder.is_dir())) if not seen]:
        raise ValueError(
            f"{folder}: process {', '.join(hidden)} does not see it; run where all machines share the files"
        )
    return folder


def release(module, trainer) -> None:
    """What has been trained is on disk: its memory on the device is for the evaluation."""
    if module.device.type == "cuda":
        module.to("cpu")
        for optimizer in trainer.optimizers:
            optimizer.state.clear()
        torch.cuda.empty_cache()


def exam_on_the_way(cfg: DictConfig, judges, source, taught):
    """What is asked every so often, with fewer pictures of each prompt than at the end."""
    from sdft.callbacks.evaluations import check_choice
    from sdft.evaluation import asked_here, groups_of, protocol_of
    from sdft.exam import Exam

    if judges is None:
        raise ValueError(
            f"evaluate_every={cfg.evaluate_every}: no judge; choose metrics=clip, or metrics=digits for digits"
        )
    questions, protocol = source.questions(), replace(protocol_of(cfg), images=cfg.evaluate_images)
    groups = groups_of(cfg, protocol, questions, source)
    exam = Exam(judges, protocol, groups, taught, asked_here(questions, groups))
    check_choice(cfg.checkpoint_metric, exam)
    return exam


def open_run(record: Record, plan: dict, cfg: DictConfig, headline: str, samples, model, trainer, words: dict) -> None:
    """Say what will happen and what the data hold, on the terminal, in the run's folder and on its dashboards."""
    from sdft.callbacks.samples import show_sheet

    found = report(samples.source, samples.sizes, samples.plan.steps_an_epoch, model.tokenizer, model.prompt_tokens)
    plan["warnings"] += found.warnings
    announce(plan, headline, found.lines, record.folder)
    record.start(plan | dashboard_of(trainer.loggers, cfg) | {"words": words}, cfg)
    found.write(record.folder)
    sheet = contact_sheet(samples.source, samples.sizes)
    sheet.save(record.folder / "data.png")
    for logger in trainer.loggers:
        show_sheet(logger, "data", sheet, 0)


def dashboard_of(loggers: list, cfg: DictConfig) -> dict:
    """Where to find the run on W&B again."""
    runs = [logger.experiment for logger in loggers if hasattr(logger, "log_table")]
    if not runs:
        return {}
    return {"wandb": {"id": runs[0].id, "project": cfg.logger.project, "name": cfg.name, "mode": cfg.logger.mode}}


def cache(module, streams: list) -> None:
    """Compute once what does not learn; those parts then leave the device to the others."""
    from sdft.data.cache import fill

    learns = any(name.startswith("text_encoder.") for name in module.learned())
    module.resting = fill(streams, module.model, text=not learns and not streams[0].stream.shuffle_tags)


def fit(module, samples, trainer, loop, checkpoint: Path | None, record: Record, words: dict) -> None:
    """Train, and write down how it ended."""
    from sdft.data.module import Pictures

    began = time.perf_counter()
    try:
        for logger in trainer.loggers:
            logger.log_hyperparams(words | {"learns": sum(p.numel() for p in module.learned().values())})
        trainer.fit(module, Pictures(samples, loop.batch_size, loop.workers), ckpt_path=checkpoint, weights_only=True)
    except BaseException:
        record.end("failed")
        raise
    processes.wait()  # for the first one's files
    record.end(
        "trained",
        seconds=round(time.perf_counter() - began, 1),
        **outcome(trainer, record.folder / module.method.result),
    )


def check_name(name: str) -> None:
    """It names folders and files."""
    if not re.fullmatch(r"[\w+-][\w .+-]*", name):
        raise ValueError(f"name={name}: choose letters, digits, spaces and . _ + - for it")


def check_unfinished(checkpoint: Path | None, steps: int) -> None:
    """Going on from a finished run would train nothing and look like success."""
    if checkpoint is None:
        return
    done = torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"]
    if done >= steps:
        raise ValueError(f"resume={checkpoint}: already at step {done} of {steps}; give more steps")


def title(choices, cfg: DictConfig) -> str:
    rank = f" rank {cfg.rank} α {cfg.alpha:g}" if "rank" in cfg else ""
    return f"{choices.method}{rank} · {choices.model}"


def flat(cfg: DictConfig, choices) -> dict:
    """Top-level words as columns, and the chosen names of the groups."""
    plain = OmegaConf.to_container(cfg)
    words = {key: value for key, value in plain.items() if not isinstance(value, dict)}
    return words | {
        key: choices[key] for key in ("method", "model", "data", "optimizer", "schedule", "precision", "strategy")
    }


def outcome(trainer, result: Path) -> dict:
    """What the callbacks measured, and what the result weighs."""
    from sdft.callbacks.evaluations import Evaluations
    from sdft.callbacks.meters import Meters
    from sdft.callbacks.validation import Validation

    found = {type(callback): callback for callback in trainer.callbacks}
    meters, validation = found[Meters], found[Validation]
    best = found[Evaluations].best if Evaluations in found else None
    early = {"stopped_at": trainer.global_step} if trainer.global_step < trainer.max_steps else {}
    return {
        **({"best": best} if best else {}),
        **early,
        "last": meters.last,
        "seconds_per_step": round(meters.seconds / meters.steps, 4) if meters.steps else None,
        "validation_loss": [validation.first, validation.last],
        "result_mb": round(megabytes(result), 3),
    }


def megabytes(result: Path) -> float:
    return sum(f.stat().st_size for f in result.rglob("*.safetensors")) / 2**20


def close_dashboards() -> None:
    """Each run of a sweep in this process is a W&B run of its own."""
    import sys

    if "wandb" in sys.modules and sys.modules["wandb"].run is not None:
        sys.modules["wandb"].finish()


def closing(record: Record, cfg: DictConfig, method, judges, held_out: bool, loggers: list) -> None:
    """What improved, and where everything lies."""
    from sdft.curves import draw

    folder, (first, last) = record.folder, record.facts["validation_loss"]
    images = "held-out" if held_out else "training"
    if first_of_all := processes.rank() == 0:
        print(f"loss     {first:.4f} → {last:.4f} at fixed noise on {images} images ({last / first - 1:+.1%})")
        draw(folder, held_out)
        if stopped := record.facts.get("stopped_at"):
            waited = f"{cfg.patience} evaluations in a row"
            print(f"stopped  at step {stopped}: {waited} brought no better {cfg.checkpoint_metric}")
    if cfg.metrics:
        from sdft.dashboard import show_report
        from sdft.evaluation import evaluate
        from sdft.states import of_run

        report = evaluate(folder / "evaluation", cfg, of_run(folder, method, [1.0], None, cfg.seed), judges)
        for logger in loggers if report else ():
            show_report(logger, report, folder / "evaluation" / "pictures.png")
    if not first_of_all:
        return
    result = folder / method.result
    print(f"look     {folder / 'samples.png'}   {folder / 'loss.png'}")
    print(f"{method.result:<8} {result}/ ({megabytes(result):.1f} MB)")
    if best := record.facts.get("best"):
        print(f"best     {folder / 'best'}/ is of step {best['step']}: {best['metric']} {best['value']:.3f}")
    score = "python evaluate.py" if judges else "python evaluate.py metrics=clip"
    print(f"next     {score}   ·   python train.py model=sd15 data=folder data.path=PHOTOS")
