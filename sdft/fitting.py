"""Lightning's loop, which also ends a run that was killed between its last step and its end."""

from lightning.pytorch.loops import _FitLoop


class Fitting(_FitLoop):
    skip = False  # with no step left, what comes after the last one still has to be done

    @classmethod
    def of(cls, trainer) -> "Fitting":
        """In place of the loop that `trainer` has made."""
        loop = cls(trainer, max_epochs=trainer.fit_loop.max_epochs)
        loop.epoch_loop = trainer.fit_loop.epoch_loop
        return loop
