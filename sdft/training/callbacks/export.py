"""Export at the end of training: the method's own files, a model card, and a last checkpoint to resume from."""

from sdft.training.callbacks.base import RunCallback
from sdft.training.callbacks.sample_images import SampleImageWriter
from sdft.training.export.model_card import write_model_card
from sdft.training.export.modelspec import write_result_metadata
from sdft.training.fsdp import unshard_model


class ResultExport(RunCallback):
    def __init__(self, name: str, command: list[str]):
        self.name, self.command = name, command

    def on_train_end(self, trainer, module):
        samples = next(callback for callback in trainer.callbacks if isinstance(callback, SampleImageWriter))
        folder = self.folder
        trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt")
        result = folder / module.method.output_kind
        with self.ema.apply_averages(module), module.masters.use_in_networks():
            model = unshard_model(module.model)
            if trainer.is_global_zero:
                module.method.save(model, result, self.name)
                write_result_metadata(result, folder, module.method.output_kind, trainer.global_step)
                write_model_card(
                    result, self.name, module, samples.sampling, samples.prompts, samples.resolution, self.command
                )
