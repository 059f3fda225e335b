"""Write run folders like those of training, without training."""

import json
from pathlib import Path

from PIL import Image

PROMPTS = ("a handwritten five", "a handwritten six")


def write_run(folder: Path, state: str = "finished", steps=(0, 10, 20), prompts=PROMPTS, **facts) -> Path:
    folder.mkdir(parents=True)
    run_json = {
        "format": 1,
        "command": ["train.py", "rank=4", "steps=20"],
        "overrides": ["rank=4", "steps=20"],
        "choices": {"method": "lora", "data": "digits", "metrics": "digits"},
        "started": "2026-01-02T03:04:05+0000",
        "state": state,
        "commit": "abc1234",
        "versions": {"torch": "2.8"},
        "trainable": {"unet": 1000},
        "steps": 20,
        "device": "cpu",
        "warnings": [],
        "digests": {"data": "d1"},
        "options": {"method": "lora", "rank": 4, "model": "tiny", "data": "digits", "tags": [], "flip": False},
        "seconds": 12.5,
        "seconds_per_step": 0.5,
        "last": {"memory_gb": 1.5},
        "result_mb": 0.7,
        "validation_loss": [0.2, 0.1],
        **facts,
    }
    (folder / "run.json").write_text(json.dumps(run_json), encoding="utf-8")
    (folder / "config.yaml").write_text("rank: 4\n")
    rows = ["step,validation/loss,train/loss,train/grad_norm,train/lr_unet,scores/CLIP-T"]
    rows += [f"{n},{0.2 - 0.005 * n},{0.3 - 0.01 * n},{0.05},{0.001},{0.1 + n / 100}" for n in range(20)]
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    for n, step in enumerate(steps):
        write_samples(folder / "samples" / f"step-{step:06d}", prompts, 40 * n)
    Image.new("RGB", (64, 64), "teal").save(folder / "data.png")
    (folder / "data.json").write_text(json.dumps({"images": 50, "frequent words": {"five": 3}}))
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "scores.json").write_text(json.dumps(build_scores()))
    (folder / "evaluation" / "report.html").write_text(
        "<!doctype html><title>a report</title><script>alert(1)</script>"
    )
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text("- rank=4\n")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"x" * 2048)
    return folder


def write_samples(step_folder: Path, prompts, shade: int) -> None:
    step_folder.mkdir(parents=True)
    for n, _ in enumerate(prompts):
        Image.new("RGB", (32, 32), (shade, 100 * n % 256, 90)).save(step_folder / f"{n:03d}.png")
    entries = [{"file": f"{n:03d}.png", "prompt": prompt, "seed": 7} for n, prompt in enumerate(prompts)]
    (step_folder / "samples.json").write_text(json.dumps(entries), encoding="utf-8")


def build_scores() -> dict:
    metric = {"description": "Does it match?", "number_format": "{:.3f}", "higher_is_better": True, "baseline": "base"}
    states = [("base", 0.4, {}), ("fine-tuned", 0.6, {"value": 0.2, "low": 0.1, "high": 0.3})]
    return {
        "schema": 1,
        "settings": "x",
        "scorers": {"clip": "tiny-clip"},
        "images": 1,
        "sampling": {"seed": 0},
        "groups": {"prompts": list(PROMPTS)},
        "reference": {},
        "metrics": {"prompts": {"CLIP-T": metric}},
        "states": [
            {
                "label": label,
                "image_folder": "images",
                "scores": {"prompts": {"CLIP-T": {"value": value, "low": value - 0.1, "high": value + 0.1}}},
                "difference": {"prompts": {"CLIP-T": gain}} if gain else {},
            }
            for label, value, gain in states
        ],
    }
