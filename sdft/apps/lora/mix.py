"""Mix several LoRA files into one: sdft mix adapters=[A,B] weights=[0.7,0.3]"""

from pathlib import Path

from sdft.cli.entry_point import hydra_main
from sdft.runs.terminal import print_text

OPTION_TYPES = {
    "adapters": list[str],
    "weights": list[float],
    "merge_method": str,
    "rank": int | None,
    "weight_sum": str,
}
OPTION_TYPES |= {"name": str, "dtype": str, "architecture": str | None, "folder": str}


@hydra_main("mix")
def main(cfg):
    from sdft.config import check_config, check_option_types

    check_config(cfg)
    check_option_types(
        cfg, {key: hint for key, hint in OPTION_TYPES.items() if key != "weights" or cfg.weights is not None}
    )
    from sdft.apps.lora.lora_io import (
        build_provenance,
        check_file_name,
        format_ranks,
        parse_dtype,
        read_lora_files,
        save_lora_formats,
    )
    from sdft.lora.mixing import mix_lora_files, normalize_weights

    check_file_name(cfg.name)
    parse_dtype(cfg.dtype)
    weights = normalize_weights(None if cfg.weights is None else list(cfg.weights), len(cfg.adapters), cfg.weight_sum)
    files = read_lora_files(list(cfg.adapters), cfg.architecture)
    result = mix_lora_files(files, weights, cfg.merge_method, cfg.rank)
    for weight, file in zip(weights, files, strict=True):
        ranks = format_ranks(sorted({layer.rank for layer in file.layers.values()}))
        print_text(f"{weight:<10g} {file.path}  ({file.file_format}, rank {ranks})")
    print_text(
        f"mix        {cfg.merge_method}, rank {format_ranks(result.ranks)}: {format_accuracy(result, cfg.merge_method)}"
    )
    settings = {
        "merge_method": cfg.merge_method,
        **({"rank": cfg.rank} if cfg.rank else {}),
        "energy_fraction": round(result.energy_fraction, 6),
    }
    provenance = build_provenance("mix", files, weights, **settings)
    save_lora_formats(result.parts, files[0].architecture, Path(cfg.folder), cfg.name, provenance, cfg.dtype)


def format_accuracy(result, merge_method: str) -> str:
    """How close the mix is to the exact weighted sum."""
    if merge_method == "linear":
        return f"differs from the weighted sum by {result.relative_error:.1%} of its norm; merge_method=svd is more accurate"
    if result.lost_energy == 0:
        return "exact weighted sum"
    return f"retains {result.energy_fraction:.4%} of the energy of the weighted sum"


if __name__ == "__main__":
    main()
