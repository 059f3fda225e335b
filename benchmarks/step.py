"""Overhead of the training step over a bare loop: python benchmarks/step.py [rounds=20 per=10 warm=10] KEY=VALUE …

Takes the options of train.py: any model, method, batch, resolution and precision; `model.weights=random` needs no weights. The
bare loop is the forward pass, backward pass and optimizer step of the same networks on prepared tensors, never compiled: a lower
bound. Both alternate in one process, `rounds` times `per` steps each, on cached noise images. TFLOP/s count the matrix products
of the bare loop, forward and backward. `channels_last=0` leaves weights contiguous on a GPU, to compare.

The last lines are ours - bare in ms per step and ours / bare: medians over the rounds, with their quartiles, of the two loops of
one round. Short rounds keep both loops in the same load of a shared machine, and the median drops rounds that another process
disturbs. A round of `per=10` steps contains one report, as `log_every=10`.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import json
import statistics
import sys
import tempfile
import time
from contextlib import chdir, nullcontext
from pathlib import Path

from data import generate_images
from measurement import ROOT, describe_machine, report_table, split_options

PEAK_TFLOPS = {"H100 PCIe": 756, "H100": 989, "H200": 989, "A100": 312, "L40S": 362}  # bf16, dense
QUIET_OVERRIDES = ["logger=none", "metrics=none", "sample_every=0", "validate_every=0", "log_every=10"]


def measure_steps(overrides: list[str], rounds: int, per: int, warm: int) -> dict[str, list[float]]:
    """Seconds per step of every round of both loops, and their memory, FLOPs and batch size."""
    from lightning import Callback
    from torch.utils.flop_counter import FlopCounterMode

    import sdft.training.training_run as training_run
    from sdft.training.callbacks.metrics import get_peak_memory_gb

    results = {"ours": [], "bare": []}

    class BareLoopTimer(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            self.batch = batch

        def on_train_batch_end(self, trainer, module, *_):
            steps = trainer.global_step - warm
            if steps < 0 or steps % per or (trainer.global_step and trainer.fit_loop._should_accumulate()):
                return
            synchronize(module.device)
            if steps:
                results["ours"].append((time.perf_counter() - self.start) / per)
            run_bare_step = build_bare_step(module, trainer.optimizers[0], self.batch, compiled)
            if not steps:
                results["memory_gb"] = get_peak_memory_gb(module.device)
                with FlopCounterMode(display=False) as counter:
                    run_bare_step()
                results["flops"] = counter.get_total_flops()
                for _ in range(3):
                    run_bare_step()
            synchronize(module.device)
            start = time.perf_counter()
            for _ in range(per):
                run_bare_step()
            synchronize(module.device)
            if steps:
                results["bare"].append((time.perf_counter() - start) / per)
            self.start = time.perf_counter()

    def build_with_timer(*args):
        trainer = build_trainer(*args)
        trainer.callbacks.append(BareLoopTimer())
        return trainer

    build_trainer, training_run.build_trainer = training_run.build_trainer, build_with_timer
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        cfg, invocation = compose_config([*overrides, f"steps={warm + rounds * per}"], Path(folder))
        compiled = cfg.compile != "off"
        training_run.train(cfg, invocation)
        results["expected_gb"] = json.loads(Path(folder, "run", "run.json").read_text())["memory_gb_expected"]
    results["batch"] = cfg.batch_size
    return results


def compose_config(overrides: list[str], folder: Path):
    """The checked config of a run in `folder`, and how it is started; noise images are generated if `overrides` use them."""
    from hydra import compose, initialize_config_dir
    from omegaconf import open_dict

    from sdft.config import check_config
    from sdft.runs.invocation import Invocation

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        run_folder = f"hydra.runtime.output_dir={folder}/run"
        cfg = compose("train", [*QUIET_OVERRIDES, *overrides, run_folder], return_hydra_config=True)
    if "data.path=noise" in overrides:
        generate_images(folder / "noise", 64, cfg.resolution)
    (folder / "run").mkdir()
    invocation = Invocation(folder / "run", choices=dict(cfg.hydra.runtime.choices))
    with open_dict(cfg):
        cfg.pop("hydra")
    check_config(cfg)
    return cfg, invocation


def find_peak_flops(device: str) -> float | None:
    """Peak dense bf16 FLOP/s of a GPU from its data sheet; None for unlisted devices."""
    return next((tflops * 1e12 for name, tflops in PEAK_TFLOPS.items() if name in device), None)


def synchronize(device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def build_bare_step(module, optimizer, batch: dict, compiled: bool):
    """A training step on prepared tensors, including the text encoder if it is trainable."""
    import torch

    model = module.model
    with torch.no_grad():
        latents, frozen_conditioning, draws = module.prepare_inputs(batch)
    trains_text_encoder = any(module.get_trainable_parts().keys() & module.model.text_encoders)
    target, timesteps = torch.randn_like(latents), draws["timestep"]

    def run_step():
        eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
        with eager:
            conditioning = model.condition(batch) if trains_text_encoder else frozen_conditioning
            loss = (model.predict(latents, timesteps, conditioning).float() - target).square().mean()
        loss.backward()
        module.masters.collect_gradients()
        optimizer.step()
        module.masters.refresh_networks()
        optimizer.zero_grad(set_to_none=True)

    return run_step


def disable_channels_last() -> None:
    """Leave weights contiguous on a GPU, to compare."""
    import sdft.training.fit as fit

    fit.apply_memory_format = lambda *_: None


def summarize_rounds(values: list[float]) -> tuple[float, tuple[float, float]]:
    """The median, and the quartiles around it."""
    quartiles = statistics.quantiles(values, method="inclusive") if len(values) > 1 else 3 * values
    return quartiles[1], (quartiles[0], quartiles[2])


def main(args: list[str]) -> None:
    options, overrides = split_options(args, rounds=20, per=10, warm=10, channels_last=1, json="")
    if not options["channels_last"]:
        disable_channels_last()
    if not any(override.startswith("data") for override in overrides):
        overrides += ["data=folder", "data.path=noise", "crop=center"]
    results = measure_steps(overrides, options["rounds"], options["per"], options["warm"])
    ours, bare = (statistics.median(results[key]) for key in ("ours", "bare"))
    pairs = list(zip(results["ours"], results["bare"], strict=True))
    ratio, ratio_spread = summarize_rounds([a / b for a, b in pairs])
    overhead, overhead_spread = summarize_rounds([1000 * (a - b) for a, b in pairs])
    rows = [("loop", "ms a step", "images/s", "TFLOP/s")]
    for name, seconds in (("ours", ours), ("bare", bare)):
        tflops = results["flops"] / seconds / 1e12
        rows.append((name, f"{1000 * seconds:.1f}", f"{results['batch'] / seconds:.1f}", f"{tflops:.3g}"))
    file = Path(options["json"]) if options["json"] else None
    facts = {key: results[key] for key in ("memory_gb", "expected_gb", "flops", "bare")}
    report_table(" ".join(overrides), rows, file, ratio=ratio, overhead_ms=overhead, rounds=results["ours"], **facts)
    print(f"memory {results['memory_gb']:.2f} GB")
    if peak := find_peak_flops(describe_machine()["device"]):
        print(f"model-FLOPs utilisation {results['flops'] / ours / peak:.2f}, of {peak / 1e12:.0f} TFLOP/s in bf16")
    print("ours - bare {:.2f} ms ({:.2f} to {:.2f})".format(overhead, *overhead_spread))
    print("ratio {:.3f} ({:.3f} to {:.3f})".format(ratio, *ratio_spread))


if __name__ == "__main__":
    main(sys.argv[1:])
