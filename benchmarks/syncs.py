"""Where the host waits for the GPU in a training step: python benchmarks/syncs.py [steps=6 warm=3] KEY=VALUE …

Takes the options of train.py. After `warm` steps torch warns at each operation that waits, in steps that are not logged; the
table has the line and the count per step. The counterpart of `tests/training/test_device_steps.py` on a real GPU; a CPU has no
waits.
"""

import sys
import tempfile
import warnings
from collections import Counter
from contextlib import chdir
from pathlib import Path

from measurement import report_table, split_options
from step import compose_config

MESSAGE = "synchronizing CUDA operation"
SITE_PACKAGES = "/site-packages/"


def count_waits(overrides: list[str], steps: int, warm: int) -> Counter[str]:
    """Waits in `steps` steps by source line."""
    import torch
    from lightning import Callback

    import sdft.training.training_run as training_run

    class WaitWarnings(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            if module.device.type == "cuda":
                in_steps = warm <= trainer.global_step < trainer.max_steps
                torch.cuda.set_sync_debug_mode("warn" if in_steps else "default")

    def build_with_warnings(*args):
        trainer = build_trainer(*args)
        trainer.callbacks.append(WaitWarnings())
        return trainer

    build_trainer, training_run.build_trainer = training_run.build_trainer, build_with_warnings
    with tempfile.TemporaryDirectory() as folder, chdir(folder), warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message=MESSAGE)
        count = f"steps={warm + steps}"
        training_run.train(*compose_config([*overrides, count, f"log_every={warm + steps}"], Path(folder)))
    lines = (f"{w.filename.rpartition(SITE_PACKAGES)[2]}:{w.lineno}" for w in caught if MESSAGE in str(w.message))
    return Counter(lines)


def main(args: list[str]) -> None:
    options, overrides = split_options(args, steps=6, warm=3, json="")
    if not any(override.startswith("data") for override in overrides):
        overrides += ["data=folder", "data.path=noise", "crop=center"]
    waits = count_waits(overrides, options["steps"], options["warm"])
    rows = [(line, f"{count / options['steps']:.1f}") for line, count in waits.most_common()]
    file = Path(options["json"]) if options["json"] else None
    report_table(" ".join(overrides), [("line", "waits per step"), *rows], file, waits=dict(waits))


if __name__ == "__main__":
    main(sys.argv[1:])
