"""Whole processes, ours and a peer's, in turns: python benchmarks/peer.py SCRIPT [method=lora rounds=5 steps=120 batch=4 …]

SCRIPT is diffusers' `examples/text_to_image/train_text_to_image_lora.py`, or `train_text_to_image.py` for method=sft. Both train
the same model folder on the same pictures and captions with the same settings, on the CPU or the GPU that is there, and neither
logs or samples. A table of medians: seconds of the process, milliseconds a step, peak memory; the last line is ours / peer.
"""

import sys
import tempfile
from pathlib import Path
from statistics import median

from data import generate
from measured import ROOT, measured, median_step_seconds, options, show

RATE, RANK = 1e-4, 8


def ours(model: str, data: str, asked: dict) -> list[str]:
    lora = [f"rank={RANK}", "method.text_encoder=false"] if asked["method"] == "lora" else []
    return [
        *(
            f"{key}={value}"
            for key, value in {"method": asked["method"], "model.name": model, "data": "folder"}.items()
        ),
        *(
            f"data.path={data}",
            f"steps={asked['steps']}",
            f"batch_size={asked['batch']}",
            f"resolution={asked['resolution']}",
        ),
        *(f"lr={RATE}", "crop=center", f"precision={asked['precision']}", *lora),
        *("logger=none", "metrics=none", "sample_every=0", "validate_every=0", "sampling.steps=1"),
    ]


def theirs(model: str, data: str, asked: dict, home: str) -> list[str]:
    mixed = {"fp32": "no"}.get(asked["precision"], asked["precision"])
    about = {
        "pretrained_model_name_or_path": model,
        "train_data_dir": data,
        "output_dir": f"{home}/peer",
        "seed": 0,
        "resolution": asked["resolution"],
        "train_batch_size": asked["batch"],
        "max_train_steps": asked["steps"],
        "learning_rate": RATE,
        "snr_gamma": 5.0,
        "lr_scheduler": "constant",
        "mixed_precision": mixed,
        "checkpointing_steps": 10**6,
        "max_grad_norm": 1.0,
    } | ({"rank": RANK} if asked["method"] == "lora" else {})
    return [f"--{key}={value}" for key, value in about.items()] + ["--center_crop"]


def main(words: list[str]) -> None:
    defaults = {"method": "lora", "rounds": 5, "steps": 120, "batch": 4, "resolution": 64, "count": 64}
    asked, rest = options(words, **defaults, precision="fp32", model=str(ROOT / "sdft" / "assets" / "tiny-sd"), json="")
    script = Path(rest[0]).absolute()
    found = {"ours": [], "peer": []}
    with tempfile.TemporaryDirectory() as home:
        data = Path(home, "pictures")
        generate(data, asked["count"], asked["resolution"])
        lines = [f'{{"file_name": "{p.stem}.jpg", "text": "{p.read_text()}"}}' for p in sorted(data.glob("*.txt"))]
        (data / "metadata.jsonl").write_text("\n".join(lines) + "\n")
        for text in data.glob("*.txt"):
            text.unlink()
        for number in range(asked["rounds"]):
            turn = Path(home, str(number))
            turn.mkdir()  # neither finds what it computed before
            found["ours"].append(measured(ROOT / "train.py", ours(asked["model"], str(data), asked), turn))
            found["peer"].append(
                measured(script, theirs(asked["model"], str(data), asked, str(turn)), turn, HF_HOME=str(turn))
            )
    value = {
        name: [(t["seconds"], median_step_seconds(t), t["memory_gb"]) for t in told] for name, told in found.items()
    }
    rows = [("program", "process s", "ms a step", "peak GB")]
    for name, told in value.items():
        whole, step, memory = (median(column) for column in zip(*told, strict=True))
        rows.append((name, f"{whole:.1f}", f"{1000 * step:.1f}", f"{memory:.2f}"))
    pairs = list(zip(value["ours"], value["peer"], strict=True))
    whole, step, memory = (median(mine[k] / peer[k] for mine, peer in pairs) for k in range(3))
    file = Path(asked["json"]) if asked["json"] else None
    show(
        f"{asked['method']} beside {script.name}, batch {asked['batch']}, {asked['resolution']} px",
        rows,
        file,
        measured=value,
    )
    print(f"ratio process {whole:.2f}, steps/s {1 / step:.2f} times, memory {memory:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
