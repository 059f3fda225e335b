"""What a run leaves for other tools: the method's own files, a card, and a checkpoint to go on from."""

from lightning import Callback

from sdft.training.callbacks.sample_images import Samples
from sdft.training.export.model_card import write_card
from sdft.training.export.modelspec import describe_result
from sdft.training.fsdp import unshard_model


class Export(Callback):
    def __init__(self, samples: Samples, name: str, command: list[str]):
        self.samples, self.name, self.command = samples, name, command

    def on_train_end(self, trainer, module):
        samples, folder = self.samples, self.samples.folder
        trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt")
        result = folder / module.method.output_kind
        with samples.ema.applied(module):
            model = unshard_model(module.model)
            if trainer.is_global_zero:
                module.method.save(model, result, self.name)
                describe_result(result, folder, module.method.output_kind, trainer.global_step)
                write_card(
                    result, self.name, module, samples.sampling, samples.prompts, samples.resolution, self.command
                )
