"""Build a run from its config, say what will happen, train, and tell what improved."""

import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

import sdft.distributed as processes
from sdft.data.prompts import read_prompts
from sdft.data.transforms import split, worded
from sdft.models.cpu_threads import shared
from sdft.runs.files import tidy
from sdft.runs.hashing import of_source, of_weights
from sdft.runs.lock import Lock
from sdft.runs.metadata import Record, failed_at
from sdft.runs.reproduce import check
from sdft.runs.resume import going_on
from sdft.training.build import build_module, build_samples, build_trainer, cheap_parts
from sdft.training.compile import channels_last, compile_blocks, compiles
from sdft.training.disk_space import check_room, run_size
from sdft.training.finish import close_dashboards, closing, dashboards, outcome, release, tell_whether_same
from sdft.training.memory_estimate import step_of
from sdft.training.oom_advice import advised
from sdft.training.run_setup import check_unfinished, check_words, flat, open_run
from sdft.training.run_summary import inspect


def train(cfg: DictConfig):
    """One run in the folder that Hydra made; returns the trained module.

    Where several processes are to compute, this one starts them, waits, and exits with their status.
    What a user can get wrong is refused before anything is written there.
    """
    check_words(cfg)
    if cfg.reproduce:
        check(cfg)
    folder = Path(HydraConfig.get().runtime.output_dir)
    parts, source = cheap_parts(cfg), worded(instantiate(cfg.data), cfg.caption_template)
    prior, strategy = parts["prior"], parts["strategy"]
    if prior:
        prior.check_apart(cfg.data.get("path"))
    parts["precision"].check(strategy.trainer()["accelerator"])
    strategy.check(parts["method"].result, parts["precision"].trainer)
    if count := strategy.to_start():
        sys.exit(failed_at(folder, processes.start(count, folder)))
    processes.meet(strategy.on_cpu())
    folder = seen_by_all(processes.told(folder))
    with Lock(folder, "a run") if processes.rank() == 0 else nullcontext() as lock:
        if lock:
            tidy(folder)
        return alone(cfg, folder, parts, source)


def alone(cfg: DictConfig, folder: Path, parts: dict, source):
    """The run, whose folder is nobody else's now."""
    loop, prior, strategy = parts["training"], parts["prior"], parts["strategy"]
    a_step = loop.samples_per_step(strategy.world())
    before, (taught, spare) = going_on(cfg, folder, a_step), split(source, cfg.validation_split)
    checkpoint = loop.checkpoint(folder)
    prompts = read_prompts(cfg.prompts) or source.prompts() + ([prior.prompt] if prior else [])
    source.verify()
    parts["precision"].apply()
    torch.manual_seed(cfg.seed)
    model = instantiate(cfg.model)
    model.latent_shape(cfg.resolution)
    for resolution in parts["dataset"].extra_resolutions:
        model.latent_shape(resolution, "extra_resolutions")
    parts["method"].check(model, taught.captions())
    digests = {"model": of_weights(model), "data": of_source(taught)} if processes.rank() == 0 else {}
    steps = loop.total(parts["dataset"].plan(taught, model.unit, a_step))
    parts["schedule"].check(steps)
    done = check_unfinished(cfg, checkpoint, steps, before)

    classes, device = None, strategy.device()
    judging = cfg.metrics and (loop.evaluate_every or processes.rank() == 0)
    judges = parts["metrics"].judges(str(device) if processes.rank() == 0 else "cpu") if judging else None
    exam = exam_on_the_way(cfg, judges, source, taught) if loop.evaluate_every else None
    if prior and prior.weight:
        model.to(device).compute = parts["precision"].dtype
        classes = prior.source(model, parts["sampling"], cfg.resolution)
        classes.verify()
    module = build_module(cfg, parts, model.cpu())  # what learns begins the same on every device
    model.to(device)
    samples = build_samples(parts, model, taught, classes, a_step)
    held_out = spare and parts["dataset"].samples(spare, model, "held out ")
    size = run_size(module, loop, parts["sampling"], prompts, cfg.resolution, steps)
    cache(module, [*samples.parts, *([held_out] if spare else [])], partial(check_room, folder, size, loop=loop))
    fasten(module, samples, loop.compile, device, steps)
    trainer = build_trainer(cfg, parts, samples, held_out, folder, prompts, steps, exam, before, checkpoint)
    step = step_of(samples, loop, parts["sampling"], cfg.resolution, trainer)
    plan = inspect(module, samples, loop, parts["schedule"], trainer, step) | {"digests": digests}
    plan["warnings"] += [f"{name} not measured: {why}" for name, why in (judges.missing if judges else {}).items()]
    record, words = Record(folder), flat(cfg, HydraConfig.get().runtime.choices)
    if trainer.is_global_zero:
        open_run(record, plan, cfg, source.describe(), samples.parts[0], model, trainer, words, before, done)
    with dashboards(), advised(module, step, cfg, folder, trainer):
        with shared(module.model.unet, step.latents):
            fit(module, samples, trainer, loop, checkpoint, record, words)
        release(module, trainer)
        closing(record, cfg, module.method, judges, bool(spare), trainer.loggers)
        record.end("finished")
        same = tell_whether_same(record, cfg.reproduce) if cfg.reproduce and processes.rank() == 0 else True
        processes.part()
    if not same:
        sys.exit(1)
    return module


def seen_by_all(folder: Path) -> Path:
    """`ValueError` when a process on another machine has no way to the run's folder."""
    if hidden := [str(number) for number, seen in enumerate(processes.everywhere(folder.is_dir())) if not seen]:
        raise ValueError(
            f"{folder}: process {', '.join(hidden)} does not see it; run where all machines share the files"
        )
    return folder


def exam_on_the_way(cfg: DictConfig, judges, source, taught):
    """What is asked every so often, with fewer pictures of each prompt than at the end."""
    from sdft.evaluation.evaluate import asked_here, groups_of, protocol_of
    from sdft.evaluation.evaluator import Exam
    from sdft.training.callbacks.evaluation import check_choice

    if judges is None:
        raise ValueError(
            f"evaluate_every={cfg.evaluate_every}: no judge; choose metrics=clip, or metrics=digits for digits"
        )
    questions, protocol = source.questions(), replace(protocol_of(cfg), images=cfg.evaluate_images)
    groups = groups_of(cfg, protocol, questions, source)
    exam = Exam(judges, protocol, groups, taught, asked_here(questions, groups))
    check_choice(cfg.checkpoint_metric, exam)
    return exam


def cache(module, streams: list, check) -> None:
    """Compute once what does not learn; those parts then leave the device to the others. `check` is told the missing bytes."""
    from sdft.data.latent_cache import fill

    learns = any(name.startswith("text_encoder.") for name in module.learned())
    module.resting = fill(streams, module.model, text=not learns and not streams[0].settings.shuffle_tags, check=check)


def fasten(module, samples, compile: str, device, steps: int) -> None:
    """Kernels that are faster on this device, once it is known what learns."""
    unet = module.model.unet
    if device.type == "cuda":
        channels_last(unet)
    if compiles(compile, device, steps):
        blocks = compile_blocks(unet, shapes=len({size for part in samples.parts for size in part.sizes}))
        if processes.rank() == 0:
            print(f"compile  {blocks} blocks; the first steps wait for it", flush=True)


def fit(module, samples, trainer, loop, checkpoint: Path | None, record: Record, words: dict) -> None:
    """Train, and write down how it ended."""
    from sdft.data.datamodule import Pictures
    from sdft.training.callbacks.signals import Stopped

    try:
        for logger in trainer.loggers:
            logger.log_hyperparams(words | {"learns": sum(p.numel() for p in module.learned().values())})
        trainer.fit(module, Pictures(samples, loop.batch_size, loop.workers), ckpt_path=checkpoint, weights_only=True)
    except Stopped as stop:
        record.end("stopped", stopped_at=stop.step)
        if processes.rank() == 0:
            print(f"stopped  by {stop}; go on with resume={record.folder}", flush=True)
        close_dashboards(stop.status)
        processes.wait()
        sys.exit(stop.status)
    except BaseException:
        record.end("failed")
        raise
    processes.wait()  # for the first one's files
    record.end(
        "trained",
        **outcome(trainer, record.folder / module.method.result),
    )
