"""Our training step against the bare loop: python benchmarks/step.py [rounds=5 per=20 warm=10] WORD=VALUE …

The words are train.py's: any model, method, batch, resolution and precision, `model.weights=random` where there are no weights.
The bare loop is forward, backward and optimizer step of the same networks on tensors that are ready, never compiled: the limit.
Both take turns in one process, `rounds` times `per` steps each; pictures are noise, cached as in any run. The last line is ours
/ bare. TFLOP/s count the products of the bare loop, forward and backward.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import statistics
import sys
import tempfile
import time
from contextlib import chdir, nullcontext
from pathlib import Path

from data import generate
from measured import ROOT, machine, options, show

PEAKS = {"H100 PCIe": 756, "H100": 989, "H200": 989, "A100": 312, "L40S": 362}  # TFLOP/s
PLAIN = ["logger=none", "metrics=none", "sample_every=0", "validate_every=0", "log_every=10"]


def turns(words: list[str], rounds: int, per: int, warm: int) -> dict[str, list[float]]:
    """Seconds a step of each round, ours and the bare loop's, and what was measured beside."""
    from lightning import Callback
    from torch.utils.flop_counter import FlopCounterMode

    import sdft.training.training_run as training
    from sdft.training.callbacks.metrics import get_peak_memory_gb

    found = {"ours": [], "bare": []}

    class Turns(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            self.batch = batch

        def on_train_batch_end(self, trainer, module, *_):
            done = trainer.global_step - warm
            if done < 0 or done % per or (trainer.global_step and trainer.fit_loop._should_accumulate()):
                return
            wait(module.device)
            if done:
                found["ours"].append((time.perf_counter() - self.since) / per)
            loop = bare(module, trainer.optimizers[0], self.batch, compiled)
            if not done:
                found["memory_gb"] = get_peak_memory_gb(module.device)
                with FlopCounterMode(display=False) as counted:
                    loop()
                found["flops"] = counted.get_total_flops()
                for _ in range(3):
                    loop()
            wait(module.device)
            start = time.perf_counter()
            for _ in range(per):
                loop()
            wait(module.device)
            if done:
                found["bare"].append((time.perf_counter() - start) / per)
            self.since = time.perf_counter()

    def with_turns(*args):
        trainer = build(*args)
        trainer.callbacks.append(Turns())
        return trainer

    build, training.build_trainer = training.build_trainer, with_turns
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        cfg = compose_config([*words, f"steps={warm + rounds * per}"], Path(folder))
        compiled = cfg.compile != "off"
        training.train(cfg)
    found["batch"] = cfg.batch_size
    return found


def compose_config(words: list[str], folder: Path):
    """The config of a run in `folder`, checked, as the command line would make it; noise is made where it is asked for."""
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict

    from sdft.config import check_config

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        own = f"hydra.runtime.output_dir={folder}/run"
        cfg = compose("train", [*PLAIN, *words, own], return_hydra_config=True)
    if "data.path=noise" in words:
        generate(folder / "noise", 64, cfg.resolution)
    (folder / "run").mkdir()
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        cfg.pop("hydra")
    check_config(cfg)
    return cfg


def peak(device: str) -> float | None:
    """FLOP/s of a GPU's tensor cores in bf16, dense, as its data sheet has it; None for one that is not listed."""
    return next((speed * 1e12 for name, speed in PEAKS.items() if name in device), None)


def wait(device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bare(module, optimizer, batch: dict, compiled: bool):
    """A step on tensors that are ready; of what learns, the text encoder too, nothing is left out."""
    import torch

    model = module.model
    mixed = model.compute_dtype is not torch.float32
    with torch.no_grad(), torch.autocast(module.device.type, model.compute_dtype, enabled=mixed):
        latents, context = module.encode_batch(batch)
    learns = any(name.startswith("text_encoder.") for name in module.get_trainable_parameters())
    target, timesteps = torch.randn_like(latents), batch["timestep"]

    def loop():
        eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
        with eager, torch.autocast(module.device.type, model.compute_dtype, enabled=mixed):
            told = model.condition(batch["ids"]) if learns else context
            loss = (model.predict(latents, timesteps, told).float() - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return loop


def main(words: list[str]) -> None:
    asked, words = options(words, rounds=5, per=20, warm=10, json="")
    if not any(word.startswith("data") for word in words):
        words += ["data=folder", "data.path=noise", "crop=center"]
    told = turns(words, asked["rounds"], asked["per"], asked["warm"])
    ours, limit = (statistics.median(told[key]) for key in ("ours", "bare"))
    ratio = statistics.median(a / b for a, b in zip(told["ours"], told["bare"], strict=True))
    rows = [("loop", "ms a step", "images/s", "TFLOP/s")]
    for name, seconds in (("ours", ours), ("bare", limit)):
        speed = told["flops"] / seconds / 1e12
        rows.append((name, f"{1000 * seconds:.1f}", f"{told['batch'] / seconds:.1f}", f"{speed:.3g}"))
    file = Path(asked["json"]) if asked["json"] else None
    facts = {key: told[key] for key in ("memory_gb", "flops", "bare")}
    show(" ".join(words), rows, file, ratio=ratio, rounds=told["ours"], **facts)
    print(f"memory {told['memory_gb']:.2f} GB")
    if most := peak(machine()["device"]):
        print(f"model-FLOPs utilisation {told['flops'] / ours / most:.2f}, of {most / 1e12:.0f} TFLOP/s in bf16")
    print(f"ratio {ratio:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
