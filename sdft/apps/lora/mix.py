"""Several LoRA files as one: sdft mix adapters=[A,B] weights=[0.7,0.3]"""

from pathlib import Path

from sdft.cli.entry_point import hydra_main

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
    made = mix_lora_files(files, weights, cfg.merge_method, cfg.rank)
    for weight, file in zip(weights, files, strict=True):
        print(
            f"{weight:<8g} {file.path}  ({file.file_format}, rank {format_ranks(sorted({y.rank for y in file.layers.values()}))})"
        )
    close = "exactly their sum" if made.lost_energy == 0 else f"{made.energy_fraction:.4%} of their sum's energy"
    if cfg.merge_method == "linear":
        close = f"off their weighted sum by {(made.lost_energy / (made.total_energy or 1)) ** 0.5:.1%} of its norm; merge_method=svd is nearer"
    print(f"mix      {cfg.merge_method}, rank {format_ranks(made.ranks)}: {close}")
    words = {
        "merge_method": cfg.merge_method,
        **({"rank": cfg.rank} if cfg.rank else {}),
        "energy_fraction": round(made.energy_fraction, 6),
    }
    save_lora_formats(
        made.parts, Path(cfg.folder), cfg.name, build_provenance("mix", files, weights, **words), cfg.dtype
    )


if __name__ == "__main__":
    main()
