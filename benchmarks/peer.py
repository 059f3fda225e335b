"""Compare complete runs of ours and a peer's script: python benchmarks/peer.py SCRIPT [method=lora rounds=5 steps=120 batch=4 …]

SCRIPT is diffusers' `examples/text_to_image/train_text_to_image_lora.py`, or `train_text_to_image.py` for method=sft. Both train
the same model folder alternately on the same images and captions with the same settings, on the available device, without logging
or sampling. Prints a table of medians: seconds per process, milliseconds per step, peak memory; the last line is ours / peer.
"""

import sys
import tempfile
from pathlib import Path
from statistics import median

from data import generate_images
from measurement import ROOT, measure_program, median_step_seconds, report_table, split_options

LR, RANK = 1e-4, 8


def build_our_args(model: str, data: str, options: dict) -> list[str]:
    lora = [f"rank={RANK}", "method.text_encoder=false"] if options["method"] == "lora" else []
    return [
        f"method={options['method']}",
        f"model.name={model}",
        "data=folder",
        f"data.path={data}",
        f"steps={options['steps']}",
        f"batch_size={options['batch']}",
        f"resolution={options['resolution']}",
        f"lr={LR}",
        "crop=center",
        f"precision={options['precision']}",
        *lora,
        *("logger=none", "metrics=none", "sample_every=0", "validate_every=0", "sampling.steps=1"),
    ]


def build_peer_args(model: str, data: str, options: dict, folder: str) -> list[str]:
    mixed_precision = {"fp32": "no"}.get(options["precision"], options["precision"])
    settings = {
        "pretrained_model_name_or_path": model,
        "train_data_dir": data,
        "output_dir": f"{folder}/peer",
        "seed": 0,
        "resolution": options["resolution"],
        "train_batch_size": options["batch"],
        "max_train_steps": options["steps"],
        "learning_rate": LR,
        "snr_gamma": 5.0,
        "lr_scheduler": "constant",
        "mixed_precision": mixed_precision,
        "checkpointing_steps": 10**6,
        "max_grad_norm": 1.0,
    } | ({"rank": RANK} if options["method"] == "lora" else {})
    return [f"--{key}={value}" for key, value in settings.items()] + ["--center_crop"]


def main(args: list[str]) -> None:
    defaults = {"method": "lora", "rounds": 5, "steps": 120, "batch": 4, "resolution": 64, "count": 64}
    defaults |= {"precision": "fp32", "model": str(ROOT / "sdft" / "assets" / "tiny-sd"), "json": ""}
    options, (script, *_) = split_options(args, **defaults)
    script = Path(script).absolute()
    measurements = {"ours": [], "peer": []}
    with tempfile.TemporaryDirectory() as home:
        data = Path(home, "images")
        generate_images(data, options["count"], options["resolution"])
        lines = [f'{{"file_name": "{p.stem}.jpg", "text": "{p.read_text()}"}}' for p in sorted(data.glob("*.txt"))]
        (data / "metadata.jsonl").write_text("\n".join(lines) + "\n")
        for text in data.glob("*.txt"):
            text.unlink()
        for number in range(options["rounds"]):
            folder = Path(home, str(number))
            folder.mkdir()  # without caches of the last round
            our_args = build_our_args(options["model"], str(data), options)
            measurements["ours"].append(measure_program(ROOT / "train.py", our_args, folder))
            peer_args = build_peer_args(options["model"], str(data), options, str(folder))
            measurements["peer"].append(measure_program(script, peer_args, folder, HF_HOME=str(folder)))
    values = {
        name: [(m["seconds"], median_step_seconds(m), m["memory_gb"]) for m in rounds]
        for name, rounds in measurements.items()
    }
    rows = [("program", "process s", "ms a step", "peak GB")]
    for name, rounds in values.items():
        process, step, memory = (median(column) for column in zip(*rounds, strict=True))
        rows.append((name, f"{process:.1f}", f"{1000 * step:.1f}", f"{memory:.2f}"))
    pairs = list(zip(values["ours"], values["peer"], strict=True))
    process, step, memory = (median(ours[k] / peer[k] for ours, peer in pairs) for k in range(3))
    file = Path(options["json"]) if options["json"] else None
    report_table(
        f"{options['method']} and {script.name}, batch {options['batch']}, {options['resolution']} px",
        rows,
        file,
        measured=values,
    )
    print(f"ratio process {process:.2f}, steps/s {1 / step:.2f} times, memory {memory:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
