"""Merge LoRA files into a model: sdft merge model=sd15 adapters=[FILE] to=merged.safetensors"""

from pathlib import Path

from sdft.cli.entry_point import hydra_main
from sdft.runs.files import check_output_path
from sdft.runs.terminal import print_text


def build_merged_model(cfg):
    """The model with the merged files, the files, and their weights (default 1)."""
    from hydra.utils import instantiate

    from sdft.apps.load_model import resolve_model_config
    from sdft.evaluation.variants import find_result_folder
    from sdft.lora.architecture import get_model_architecture
    from sdft.lora.file import read_lora_file
    from sdft.lora.merging import merge_lora_files

    model_cfg, run = resolve_model_config(cfg)
    method = instantiate(model_cfg.method) if run else None
    paths = [Path(str(path)) for path in cfg.get("adapters") or []]
    if run and method.output_kind == "embedding":
        raise ValueError(f"run={run}: textual inversion cannot be merged; give the run of a LoRA or a pipeline")
    result = find_result_folder(run, method) if run else None
    model = instantiate(model_cfg.model)
    if run and method.output_kind == "pipeline":
        method.load(model, result)
    elif run:
        paths = [run]
    weights = list(cfg.weights) if cfg.get("weights") is not None else [1.0] * len(paths)
    architectures = [get_model_architecture(model)]
    files = [read_lora_file(path, architectures, offsets=True) for path in paths]
    merge_lora_files(model, files, weights)
    return model, files, weights


@hydra_main("merge")
def main(cfg):
    from sdft.config import check_config, check_option_types

    check_config(cfg)
    check_option_types(cfg, {"to": str, "dtype": str})
    to = Path(cfg.to).expanduser()
    if to.suffix in (".ckpt", ".pt", ".bin"):
        raise ValueError(f"to={to}: pickle formats can hold code; give NAME.safetensors or a folder")
    check_output_path("to", to)
    if to.exists():
        raise ValueError(f"to={to}: already exists; give another name")
    from sdft.apps.lora.lora_io import build_provenance, parse_dtype
    from sdft.models.saving import save_pipeline_folder
    from sdft.models.single_file import save_single_file

    dtype = parse_dtype(cfg.dtype)
    model, files, weights = build_merged_model(cfg)
    provenance = build_provenance("merge", files, weights, base=Path(model.name).name, dtype=cfg.dtype)
    if to.suffix == ".safetensors":
        save_single_file(model, to, dtype, provenance)
    else:
        save_pipeline_folder(model, to, dtype, provenance)
    for weight, file in zip(weights, files, strict=True):
        print_text(f"{weight:<10g} {file.path}  ({file.file_format}, {len(file.layers)} layers)")
    print_text(
        f"saved      {to}  ({'single file, original layout' if to.suffix else 'diffusers pipeline'}, {cfg.dtype})"
    )


if __name__ == "__main__":
    main()
