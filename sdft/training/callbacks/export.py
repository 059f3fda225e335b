"""Export at the end of training: the method's own files, a model card, and a last checkpoint to resume from."""

from lightning import Callback

from sdft.training.callbacks.sample_images import SampleImageWriter
from sdft.training.export.model_card import write_model_card
from sdft.training.export.modelspec import write_result_metadata
from sdft.training.fsdp import unshard_model


class ResultExport(Callback):
    def __init__(self, samples: SampleImageWriter, name: str, command: list[str]):
        self.samples, self.name, self.command = samples, name, command

    def on_train_end(self, trainer, module):
        samples, folder = self.samples, self.samples.folder
        trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt")
        result = folder / module.method.output_kind
        with samples.ema.apply_averages(module):
            model = unshard_model(module.model)
            if trainer.is_global_zero:
                module.method.save(model, result, self.name)
                write_result_metadata(result, folder, module.method.output_kind, trainer.global_step)
                write_model_card(
                    result, self.name, module, samples.sampling, samples.prompts, samples.resolution, self.command
                )
