"""What a run leaves for other tools: the method's own files, a card, and a checkpoint to go on from."""

from lightning import Callback

from sdft.callbacks.samples import Samples
from sdft.publishing.card import write_card
from sdft.publishing.modelspec import describe_result
from sdft.sharding import whole


class Export(Callback):
    def __init__(self, samples: Samples, name: str, command: list[str]):
        self.samples, self.name, self.command = samples, name, command

    def on_train_end(self, trainer, module):
        samples, folder = self.samples, self.samples.folder
        trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt")
        result = folder / module.method.result
        with samples.ema.applied(module):
            model = whole(module.model)
            if trainer.is_global_zero:
                module.method.save(model, result, self.name)
                describe_result(result, folder, module.method.result, trainer.global_step)
                write_card(
                    result, self.name, module, samples.sampling, samples.prompts, samples.resolution, self.command
                )
