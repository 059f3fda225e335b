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
from sdft.data.transforms import apply_caption_template, split_validation
from sdft.models.cpu_threads import limit_threads
from sdft.runs.files import remove_partial_files
from sdft.runs.hashing import hash_dataset, hash_weights
from sdft.runs.lock import Lock
from sdft.runs.metadata import RunRecord, mark_failed
from sdft.runs.reproduce import check_reproducible
from sdft.runs.resume import load_previous_run
from sdft.training.build import build_components, build_module, build_trainer, build_training_dataset
from sdft.training.compile import compile_blocks, set_channels_last, should_compile
from sdft.training.disk_space import check_disk_space, estimate_run_size
from sdft.training.finish import (
    close_loggers,
    close_loggers_on_exit,
    collect_training_results,
    finish_run,
    free_training_memory,
    report_reproduction,
)
from sdft.training.memory_estimate import build_step_spec
from sdft.training.oom_advice import explain_resource_errors
from sdft.training.run_setup import check_options, flatten_options, load_resume_step, start_run
from sdft.training.run_summary import collect_run_summary


def train(cfg: DictConfig):
    """One run in the folder that Hydra made; returns the trained module.

    Where several processes are to compute, this one starts them, waits, and exits with their status.
    What a user can get wrong is refused before anything is written there.
    """
    check_options(cfg)
    if cfg.reproduce:
        check_reproducible(cfg)
    folder = Path(HydraConfig.get().runtime.output_dir)
    parts, source = build_components(cfg), apply_caption_template(instantiate(cfg.data), cfg.caption_template)
    prior, strategy = parts["prior"], parts["strategy"]
    if prior:
        prior.check_no_overlap(cfg.data.get("path"))
    parts["precision"].check_accelerator(strategy.trainer()["accelerator"])
    strategy.check(parts["method"].output_kind, parts["precision"].lightning_precision)
    if count := strategy.count_processes_to_launch():
        sys.exit(mark_failed(folder, processes.launch_processes(count, folder)))
    processes.init_process_group(strategy.on_cpu())
    folder = verify_shared_folder(processes.broadcast(folder))
    with Lock(folder, "a run") if processes.rank() == 0 else nullcontext() as lock:
        if lock:
            remove_partial_files(folder)
        return run_training(cfg, folder, parts, source)


def run_training(cfg: DictConfig, folder: Path, parts: dict, source):
    """The run, whose folder is nobody else's now."""
    loop, prior, strategy = parts["training"], parts["prior"], parts["strategy"]
    samples_per_step = loop.samples_per_step(strategy.world_size())
    before, (taught, spare) = (
        load_previous_run(cfg, folder, samples_per_step),
        split_validation(source, cfg.validation_split),
    )
    checkpoint = loop.find_checkpoint(folder)
    prompts = read_prompts(cfg.prompts) or source.prompts() + ([prior.prompt] if prior else [])
    source.verify()
    parts["precision"].configure_tf32()
    torch.manual_seed(cfg.seed)
    model = instantiate(cfg.model)
    model.latent_shape(cfg.resolution)
    for resolution in parts["dataset"].extra_resolutions:
        model.latent_shape(resolution, "extra_resolutions")
    parts["method"].check(model, taught.captions())
    digests = {"model": hash_weights(model), "data": hash_dataset(taught)} if processes.rank() == 0 else {}
    steps = loop.count_steps(parts["dataset"].plan(taught, model.size_multiple, samples_per_step))
    parts["schedule"].check(steps)
    done = load_resume_step(cfg, checkpoint, steps, before)

    classes, device = None, strategy.device()
    judging = cfg.metrics and (loop.evaluate_every or processes.rank() == 0)
    judges = parts["metrics"].load_scorers(str(device) if processes.rank() == 0 else "cpu") if judging else None
    exam = build_intermediate_evaluator(cfg, judges, source, taught) if loop.evaluate_every else None
    if prior and prior.weight:
        model.to(device).compute_dtype = parts["precision"].dtype
        classes = prior.source(model, parts["sampling"], cfg.resolution)
        classes.verify()
    module = build_module(cfg, parts, model.cpu())  # what trainable begins the same on every device
    model.to(device)
    samples = build_training_dataset(parts, model, taught, classes, samples_per_step)
    held_out = spare and parts["dataset"].samples(spare, model, "held out ")
    size = estimate_run_size(module, loop, parts["sampling"], prompts, cfg.resolution, steps)
    fill_input_caches(
        module, [*samples.datasets, *([held_out] if spare else [])], partial(check_disk_space, folder, size, loop=loop)
    )
    apply_memory_format_and_compile(module, samples, loop.compile, device, steps)
    trainer = build_trainer(cfg, parts, samples, held_out, folder, prompts, steps, exam, before, checkpoint)
    step = build_step_spec(samples, loop, parts["sampling"], cfg.resolution, trainer)
    plan = collect_run_summary(module, samples, loop, parts["schedule"], trainer, step) | {"digests": digests}
    plan["warnings"] += [f"{name} not measured: {why}" for name, why in (judges.missing if judges else {}).items()]
    record, words = RunRecord(folder), flatten_options(cfg, HydraConfig.get().runtime.choices)
    if trainer.is_global_zero:
        start_run(record, plan, cfg, source.describe(), samples.datasets[0], model, trainer, words, before, done)
    with close_loggers_on_exit(), explain_resource_errors(module, step, cfg, folder, trainer):
        with limit_threads(module.model.unet, step.latent_shape):
            fit_and_record(module, samples, trainer, loop, checkpoint, record, words)
        free_training_memory(module, trainer)
        finish_run(record, cfg, module.method, judges, bool(spare), trainer.loggers)
        record.end("finished")
        same = report_reproduction(record, cfg.reproduce) if cfg.reproduce and processes.rank() == 0 else True
        processes.destroy_process_group()
    if not same:
        sys.exit(1)
    return module


def verify_shared_folder(folder: Path) -> Path:
    """`ValueError` when a process on another machine has no way to the run's folder."""
    if hidden := [str(number) for number, seen in enumerate(processes.all_gather(folder.is_dir())) if not seen]:
        raise ValueError(
            f"{folder}: process {', '.join(hidden)} does not see it; run where all machines share the files"
        )
    return folder


def build_intermediate_evaluator(cfg: DictConfig, judges, source, taught):
    """What is asked every so often, with fewer pictures of each prompt than at the end."""
    from sdft.evaluation.evaluate import build_prompt_groups, build_protocol, select_evaluation_spec
    from sdft.evaluation.evaluator import Evaluator
    from sdft.training.callbacks.evaluation import check_checkpoint_metric

    if judges is None:
        raise ValueError(
            f"evaluate_every={cfg.evaluate_every}: no judge; choose metrics=clip, or metrics=digits for digits"
        )
    evaluation_spec, protocol = source.evaluation_spec(), replace(build_protocol(cfg), images=cfg.evaluate_images)
    groups = build_prompt_groups(cfg, protocol, evaluation_spec, source)
    exam = Evaluator(judges, protocol, groups, taught, select_evaluation_spec(evaluation_spec, groups))
    check_checkpoint_metric(cfg.checkpoint_metric, exam)
    return exam


def fill_input_caches(module, streams: list, check) -> None:
    """Compute once what does not learn; those parts then leave the device to the others. `check` is told the missing bytes."""
    from sdft.data.latent_cache import fill_caches

    trainable = any(name.startswith("text_encoder.") for name in module.get_trainable_parameters())
    module.offloaded_parts = fill_caches(
        streams, module.model, text=not trainable and not streams[0].settings.shuffle_tags, check=check
    )


def apply_memory_format_and_compile(module, samples, compile: str, device, steps: int) -> None:
    """Kernels that are faster on this device, once it is known what trainable."""
    unet = module.model.unet
    if device.type == "cuda":
        set_channels_last(unet)
    if should_compile(compile, device, steps):
        blocks = compile_blocks(unet, shapes=len({size for part in samples.datasets for size in part.sizes}))
        if processes.rank() == 0:
            print(f"compile  {blocks} blocks; the first steps wait for it", flush=True)


def fit_and_record(module, samples, trainer, loop, checkpoint: Path | None, record: RunRecord, words: dict) -> None:
    """Train, and write down how it ended."""
    from sdft.data.datamodule import TrainingDataModule
    from sdft.training.callbacks.signals import StoppedBySignal

    try:
        for logger in trainer.loggers:
            logger.log_hyperparams(
                words | {"trainable": sum(p.numel() for p in module.get_trainable_parameters().values())}
            )
        trainer.fit(
            module, TrainingDataModule(samples, loop.batch_size, loop.workers), ckpt_path=checkpoint, weights_only=True
        )
    except StoppedBySignal as stop:
        record.end("stopped", stopped_at=stop.step)
        if processes.rank() == 0:
            print(f"stopped  by {stop}; go on with resume={record.folder}", flush=True)
        close_loggers(stop.status)
        processes.barrier()
        sys.exit(stop.status)
    except BaseException:
        record.end("failed")
        raise
    processes.barrier()  # for the first one's files
    record.end(
        "trained",
        **collect_training_results(trainer, record.folder / module.method.output_kind),
    )
