"""Convert a LoRA file to the other format: sdft convert adapter=FILE to=kohya"""

from pathlib import Path

from sdft.cli.entry_point import hydra_main

OPTION_TYPES = {"adapter": str, "to": str, "name": str | None, "architecture": str | None, "folder": str}


@hydra_main("convert")
def main(cfg):
    from sdft.config import check_config, check_option_types

    check_config(cfg)
    check_option_types(cfg, OPTION_TYPES)
    if cfg.to not in ("kohya", "diffusers"):
        raise ValueError(f"to={cfg.to}: choose kohya or diffusers")
    from sdft.apps.lora.lora_io import build_provenance, check_file_name, format_lora_name, read_lora_files
    from sdft.lora.file import DIFFUSERS_FILE
    from sdft.lora.formats import filter_metadata, to_diffusers_format, to_kohya_format, write_safetensors
    from sdft.lora.state_dict import build_adapter_state

    (file,) = read_lora_files([cfg.adapter], cfg.architecture)
    name = check_file_name(cfg.name or format_lora_name(file.path).split("/")[0].removesuffix(".safetensors"))
    adapters = {part: build_adapter_state(part, layers) for part, layers in file.parts.items()}
    tensors, metadata = to_kohya_format(adapters, name) if cfg.to == "kohya" else (to_diffusers_format(adapters), {})
    file_name = f"{name.removesuffix('-kohya')}-kohya.safetensors" if cfg.to == "kohya" else DIFFUSERS_FILE
    path = Path(cfg.folder) / file_name
    metadata = filter_metadata(file.metadata) | metadata
    if "ss_output_name" in file.metadata:
        metadata["ss_output_name"] = file.metadata["ss_output_name"]
    metadata |= build_provenance("convert", [file], to=cfg.to)
    write_safetensors(path, tensors, metadata, file.dtype)
    print(f"read     {file.path}  ({file.file_format}, {' and '.join(file.adapter_types)}, fits {file.architecture})")
    print(f"saved    {path}")


if __name__ == "__main__":
    main()
