"""Convert a LoRA file to the other format, or a DoRA to the nearest LoRA: sdft convert adapter=FILE to=kohya"""

from pathlib import Path

from sdft.cli.entry_point import hydra_main
from sdft.runs.terminal import print_text

OPTION_TYPES = {"adapter": str, "to": str, "base": str | None, "rank": int | None}
OPTION_TYPES |= {"name": str | None, "architecture": str | None, "folder": str}


def read_plain_lora(adapter: str, base_name: str, rank: int | None):
    """The file, and the plain LoRA of `rank` nearest to its change of the base."""
    from sdft.lora.architecture import get_model_architecture
    from sdft.lora.file import read_lora_file
    from sdft.lora.merging import find_nearest_lora, load_model_or_run

    if rank is None:
        raise ValueError(f"base={base_name}: give the rank of the LoRA, such as rank=32")
    base = load_model_or_run(base_name, "base")
    file = read_lora_file(Path(adapter), [get_model_architecture(base)])
    if not file.has_dora:
        raise ValueError(f"base={base_name}: needed for DoRA only, and {file.path.name} has none; remove base and rank")
    return file, find_nearest_lora(base, file, rank)


@hydra_main("convert")
def main(cfg):
    from sdft.config import check_config, check_option_types

    check_config(cfg)
    check_option_types(cfg, OPTION_TYPES)
    if cfg.to not in ("kohya", "diffusers"):
        raise ValueError(f"to={cfg.to}: choose kohya or diffusers")
    if cfg.rank is not None and cfg.base is None:
        raise ValueError(f"rank={cfg.rank}: requires base=MODEL, for DoRA; sdft resize changes the rank of a LoRA")
    from sdft.apps.lora.lora_io import (
        build_adapters,
        build_provenance,
        check_file_name,
        format_lora_name,
        read_lora_files,
    )
    from sdft.lora.file import DIFFUSERS_FILE
    from sdft.lora.formats import DORA_WARNING, filter_metadata, to_diffusers_format, to_kohya_format, write_safetensors

    settings = {"to": cfg.to}
    if cfg.base is None:
        (file,) = read_lora_files([cfg.adapter], cfg.architecture)
        parts = file.parts
    else:
        file, result = read_plain_lora(cfg.adapter, cfg.base, cfg.rank)
        parts, error = result.parts, result.relative_error
        settings |= {"base": Path(cfg.base).name, "rank": cfg.rank, "relative_error": float(f"{error:.3g}")}
        print_text(f"nearest    LoRA of rank {cfg.rank}: differs from the DoRA by {error:.2%} of its change")
    name = check_file_name(cfg.name or format_lora_name(file.path).split("/")[0].removesuffix(".safetensors"))
    adapters = build_adapters(file.path, parts)
    tensors, metadata = (
        to_kohya_format(adapters, name, file.architecture) if cfg.to == "kohya" else (to_diffusers_format(adapters), {})
    )
    file_name = f"{name.removesuffix('-kohya')}-kohya.safetensors" if cfg.to == "kohya" else DIFFUSERS_FILE
    path = Path(cfg.folder) / file_name
    metadata = file.architecture.family.build_metadata() | filter_metadata(file.metadata) | metadata
    if "ss_output_name" in file.metadata:
        metadata["ss_output_name"] = file.metadata["ss_output_name"]
    metadata |= build_provenance("convert", [file], **settings)
    write_safetensors(path, tensors, metadata, file.dtype)
    print_text(
        f"read       {file.path}  ({file.file_format}, {' and '.join(file.adapter_types)}, fits {file.architecture.name})"
    )
    print_text(f"saved      {path}")
    if cfg.to == "kohya" and cfg.base is None and file.has_dora:
        print_text(f"warning    {DORA_WARNING}")


if __name__ == "__main__":
    main()
