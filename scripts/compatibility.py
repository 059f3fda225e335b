"""Make docs/compatibility.md: which tools read the files that sdft writes, and how exactly.

    python -m scripts.compatibility [FOLDER]

Nothing is trained: adapters of every type get random weights, on narrow models with all layers of the published ones. Older
diffusers and transformers are installed from the package index into FOLDER (default: a temporary folder) and use the installed
torch. sd-scripts, ComfyUI, A1111 and LyCORIS are restated in `compatibility_readers.py`. Six minutes on two cores.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from scripts.compatibility_files import MODELS, PROMPTS, build_base, list_weights, write_adapters, write_other_files
from scripts.compatibility_page import render_page
from scripts.compatibility_readers import READERS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "compatibility.md"
FILE_KINDS = ("adapters", "pipelines", "single_files", "embeddings")
PACKAGES = {  # of the environments before the installed one
    "diffusers 0.31, transformers 4.41": {
        "diffusers": "0.31.0",
        "transformers": "4.41.2",
        "tokenizers": "0.19.1",
        "huggingface_hub": "0.26.5",
        "peft": "0.13.2",
    },
    "diffusers 0.35, transformers 4.57": {
        "diffusers": "0.35.2",
        "transformers": "4.57.1",
        "tokenizers": "0.22.1",
        "huggingface_hub": "0.36.0",
        "peft": "0.17.1",
    },
}


def main(folder: Path) -> None:
    installed = ", ".join(f"{name} {version(name).rpartition('.')[0]}" for name in ("diffusers", "transformers"))
    environments = {
        name: (packages, install_packages(folder / f"packages-{number}", packages))
        for number, (name, packages) in enumerate(PACKAGES.items())
    } | {installed: ({}, None)}
    adapters, others = {}, {}
    for number, name in enumerate(MODELS):
        adapters[name], others[name] = compare_model(name, folder / f"model-{number}", environments)
    PAGE.write_text(render_page(adapters, others), encoding="utf-8")
    print(f"saved      {PAGE}")


def compare_model(name: str, folder: Path, environments: dict[str, tuple]) -> tuple[dict, dict]:
    """The errors of adapters by `KIND/FORMAT`, and of other files by name, each by reader, on one model of `MODELS`."""
    folder.mkdir(exist_ok=True)
    base = build_base(name, folder / "base")
    files, changes = write_adapters(folder, base)
    others, tensors = write_other_files(folder, base)
    # a single file is read with configurations only, so that no weights can come from elsewhere
    shutil.copytree(folder / "base", folder / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    job = {"base": str(folder / "base"), "config": str(folder / "config"), "adapters": files, "prompts": PROMPTS}
    job |= {"pipeline_class": base.pipeline_names["text_to_image"]} | others
    results = {
        environment: run_probe(folder / f"results-{number}", job | {"versions": versions}, packages)
        for number, (environment, (versions, packages)) in enumerate(environments.items())
    }
    return compare_adapters(files, changes, base, results), compare_others(tensors, results)


def install_packages(folder: Path, packages: dict[str, str]) -> Path:
    if not folder.is_dir():
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--target",
            str(folder),
            *(f"{name}=={number}" for name, number in packages.items()),
        ]
        subprocess.run(command, check=True)
    return folder


def run_probe(out: Path, job: dict, packages: Path | None) -> dict[str, dict[str, Tensor] | str]:
    """What plain diffusers reads in one environment: tensors by file, or the name of its error."""
    out.mkdir(exist_ok=True)
    names = {name: str(number) for number, name in enumerate(name for kind in FILE_KINDS for name in job[kind])}
    numbered = {kind: {names[name]: file for name, file in job[kind].items()} for kind in FILE_KINDS}
    (out / "job.json").write_text(json.dumps(job | numbered | {"out": str(out)}))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    environment |= {"PYTHONPATH": str(packages)} if packages else {}
    probe = Path(__file__).with_name("compatibility_probe.py")
    with open(out / "log.txt", "w") as log:
        command = [sys.executable, str(probe), str(out / "job.json")]
        subprocess.run(command, check=True, env=environment, stdout=log, stderr=log, cwd=out)
    states = json.loads((out / "results.json").read_text())
    return {
        name: load_file(out / f"{number}.safetensors") if states[number] == "read" else states[number]
        for name, number in names.items()
    }


def compare_adapters(adapters: dict, changes: dict, base, results: dict) -> dict[str, dict[str, float | str | None]]:
    """Relative error of the change in weights by `KIND/FORMAT` and reader; None if the reader finds none of the layers."""
    weights = {
        key.removesuffix(".weight"): w for key, w in list_weights(base).items() if w.ndim > 1 and key[:3] != "vae"
    }
    rows = {}
    for name, file in adapters.items():
        expected, tensors = changes[name.partition("/")[0]], load_file(file)
        row = {reader: result[name] for reader, result in results.items()}
        row |= {reader: read(tensors, weights) for reader, read in READERS.items()}
        rows[name] = {
            reader: result if isinstance(result, str) else compute_error(result, expected)
            for reader, result in row.items()
        }
    return rows


def compute_error(changes: dict[str, Tensor], expected: dict[str, Tensor]) -> float | None:
    """Norm of the difference over the norm of the expected change, over all layers of both."""
    if not changes:
        return None
    changes, zero = {key.removesuffix(".weight"): change for key, change in changes.items()}, torch.zeros(())
    names = changes.keys() | expected.keys()
    squares = [(changes.get(n, zero).double() - expected.get(n, zero).double()).square().sum() for n in sorted(names)]
    return float((sum(squares) / sum(value.double().square().sum() for value in expected.values())).sqrt())


def compare_others(expected: dict, results: dict) -> dict[str, dict[str, float | str]]:
    """The largest difference of a weight, token id or embedding from what was saved, by file and reader."""
    return {
        name: {
            reader: found[name] if isinstance(found[name], str) else compute_largest_difference(found[name], tensors)
            for reader, found in results.items()
        }
        for name, tensors in expected.items()
    }


def compute_largest_difference(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    if tensors.keys() != expected.keys() or any(tensors[key].shape != expected[key].shape for key in expected):
        return float("inf")
    return max(float((tensors[key].double() - expected[key].double()).abs().max()) for key in expected)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]).resolve())
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
