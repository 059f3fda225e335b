"""LoRA files taken into a model for good: sdft merge model=sd15 adapters=[FILE] to=merged.safetensors"""

from pathlib import Path

from sdft.cli.entry_point import command


def merged(asked):
    """The model that the words name with the files in its weights, the files, and their strengths, 1 by default."""
    from hydra.utils import instantiate

    from sdft.apps.load_model import config
    from sdft.evaluation.variants import result_in
    from sdft.lora.architecture import of_model
    from sdft.lora.file import read
    from sdft.lora.merging import merge

    cfg, run = config(asked)
    method = instantiate(cfg.method) if run else None
    paths = [Path(str(path)) for path in asked.get("adapters") or []]
    if run and method.result == "embedding":
        raise ValueError(
            f"run={run}: learned words, which are no change of weights; give the run of a LoRA or a pipeline"
        )
    result = result_in(run, method) if run else None
    model = instantiate(cfg.model)
    if run and method.result == "pipeline":
        method.load(model, result)
    elif run:
        paths = [run]
    weights = list(asked.weights) if asked.get("weights") is not None else [1.0] * len(paths)
    among = [of_model(model)]
    files = [read(path, among) for path in paths]
    merge(model, files, weights)
    return model, files, weights


@command("merge")
def main(cfg):
    from sdft.config import check, typed

    check(cfg)
    typed(cfg, {"to": str, "dtype": str})
    to = Path(cfg.to).expanduser()
    if to.suffix in (".ckpt", ".pt", ".bin"):
        raise ValueError(f"to={to}: a pickle can hold code; give NAME.safetensors, or a folder")
    if to.exists():
        raise ValueError(f"to={to}: is there already; give another name")
    from sdft.apps.lora.lora_io import dtype_of, record
    from sdft.lora.single_file import save_folder, save_single

    dtype = dtype_of(cfg.dtype)
    model, files, weights = merged(cfg)
    told = record("merge", files, weights, base=Path(model.name).name, dtype=cfg.dtype)
    if to.suffix == ".safetensors":
        save_single(model, to, dtype, told)
    else:
        save_folder(model, to, dtype, told)
    for weight, file in zip(weights, files, strict=True):
        print(f"{weight:<8g} {file.path}  ({file.form}, {len(file.layers)} layers)")
    print(f"saved    {to}  ({'one file in the original layout' if to.suffix else 'a pipeline'}, {cfg.dtype})")


if __name__ == "__main__":
    main()
