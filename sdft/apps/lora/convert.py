"""A LoRA file in the other format: sdft convert adapter=FILE to=kohya"""

from pathlib import Path

from sdft.cli.entry_point import command

WORDS = {"adapter": str, "to": str, "name": str | None, "architecture": str | None, "folder": str}


@command("convert")
def main(cfg):
    from sdft.config import check, typed

    check(cfg)
    typed(cfg, WORDS)
    if cfg.to not in ("kohya", "diffusers"):
        raise ValueError(f"to={cfg.to}: choose kohya or diffusers")
    from sdft.apps.lora.lora_io import called, file_name, opened, record
    from sdft.lora.file import DIFFUSERS_FILE
    from sdft.lora.formats import diffusers_format, kept, kohya_format, write
    from sdft.lora.state_dict import of_layers

    (file,) = opened([cfg.adapter], cfg.architecture)
    name = file_name(cfg.name or called(file.path).split("/")[0].removesuffix(".safetensors"))
    adapters = {part: of_layers(part, layers) for part, layers in file.parts.items()}
    tensors, metadata = kohya_format(adapters, name) if cfg.to == "kohya" else diffusers_format(adapters)
    path = Path(cfg.folder) / (
        f"{name.removesuffix('-kohya')}-kohya.safetensors" if cfg.to == "kohya" else DIFFUSERS_FILE
    )
    own = {"ss_output_name": file.metadata["ss_output_name"]} if "ss_output_name" in file.metadata else {}
    write(path, tensors, kept(file.metadata) | metadata | own | record("convert", [file], to=cfg.to), file.dtype)
    print(f"read     {file.path}  ({file.form}, {' and '.join(file.kinds)}, fits {file.architecture})")
    print(f"saved    {path}")


if __name__ == "__main__":
    main()
