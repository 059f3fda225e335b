"""Several LoRA files as one: sdft mix adapters=[A,B] weights=[0.7,0.3]"""

from pathlib import Path

from sdft.cli.entry_point import command

WORDS = {"adapters": list[str], "weights": list[float], "merge_method": str, "rank": int | None, "weight_sum": str}
WORDS |= {"name": str, "dtype": str, "architecture": str | None, "folder": str}


@command("mix")
def main(cfg):
    from sdft.config import check, typed

    check(cfg)
    typed(cfg, {key: hint for key, hint in WORDS.items() if key != "weights" or cfg.weights is not None})
    from sdft.apps.lora.lora_io import dtype_of, file_name, opened, ranks_told, record, save
    from sdft.lora.mixing import balanced, mix

    file_name(cfg.name)
    dtype_of(cfg.dtype)
    weights = balanced(None if cfg.weights is None else list(cfg.weights), len(cfg.adapters), cfg.weight_sum)
    files = opened(list(cfg.adapters), cfg.architecture)
    made = mix(files, weights, cfg.merge_method, cfg.rank)
    for weight, file in zip(weights, files, strict=True):
        print(
            f"{weight:<8g} {file.path}  ({file.form}, rank {ranks_told(sorted({y.rank for y in file.layers.values()}))})"
        )
    close = "exactly their sum" if made.missing == 0 else f"{made.kept:.4%} of their sum's energy"
    if cfg.merge_method == "linear":
        close = (
            f"off their weighted sum by {(made.missing / (made.whole or 1)) ** 0.5:.1%} of its norm; merge_method=svd is nearer"
        )
    print(f"mix      {cfg.merge_method}, rank {ranks_told(made.ranks)}: {close}")
    words = {"merge_method": cfg.merge_method, **({"rank": cfg.rank} if cfg.rank else {}), "kept": round(made.kept, 6)}
    save(made.parts, Path(cfg.folder), cfg.name, record("mix", files, weights, **words), cfg.dtype)


if __name__ == "__main__":
    main()
