"""Train: kernels for the device, Lightning's fit, and the outcome in `run.json`."""

from pathlib import Path

import sdft.distributed as processes
from sdft.data.datamodule import TrainingDataModule
from sdft.models.cpu_threads import limit_threads
from sdft.runs.invocation import ExitStatus
from sdft.runs.metadata import RunRecord
from sdft.runs.resume import print_stop
from sdft.training.callbacks.stop_request import StoppedOnRequest
from sdft.training.compile import apply_memory_format, compile_blocks, should_compile
from sdft.training.finish import close_loggers
from sdft.training.results import collect_training_results
from sdft.training.step_spec import StepSpec
from sdft.training.trainer import fit


def apply_memory_format_and_compile(module, dataset, compile: str, device, steps: int) -> None:
    """Use channels-last, and compile the UNet's blocks if `compile` asks for it.

    FSDP shards contiguous weights only. Call it when the trainable parameters are known.
    """
    unet = module.model.unet
    if not module.sharded:
        apply_memory_format(unet, module.model.compute_dtype, device)
    if should_compile(compile, device, steps, find_module_obstacle(module)):
        compile_blocks(unet, shapes=len({size for part in dataset.datasets for size in part.sizes}))


def find_module_obstacle(module) -> str | None:
    """Why the blocks of this module cannot be compiled, or None."""
    if module.smoothness:
        return "compiled blocks have no second derivatives, which smooth_diffusion_weight requires"
    return "offload_blocks moves the weights of blocks during the step" if module.offloaded_blocks else None


def fit_and_record(
    module, dataset, trainer, training, checkpoint: Path | None, record: RunRecord, step: StepSpec, options: dict
) -> None:
    """Train, and record in `run.json` that the run is trained, or stopped on request."""
    try:
        num_trainable = sum(p.numel() for p in module.get_trainable_parameters().values())
        for logger in trainer.loggers:
            logger.log_hyperparams(options | {"trainable": num_trainable})
        data = TrainingDataModule(dataset, training.batch_size, training.workers)
        with limit_threads(module.model.unet, step.latent_shape):
            fit(trainer, module, data, ckpt_path=checkpoint, weights_only=True)
    except StoppedOnRequest as stop:
        record.end("stopped", stopped_at=stop.step)
        if processes.rank() == 0:
            print_stop(str(stop), record.folder, options.get("sweep"))
        close_loggers(stop.status)
        processes.barrier()
        raise ExitStatus(stop.status) from None
    processes.barrier()  # rank 0 writes the files that the others read
    record.end("trained", **collect_training_results(trainer, record.folder / module.method.output_kind))
