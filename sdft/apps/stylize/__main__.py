"""Stylize images with a trained LoRA: sdft stylize images=PHOTOS run=FOLDER"""

from pathlib import Path

from sdft.cli.entry_point import hydra_main
from sdft.runs.terminal import print_text

OPTION_TYPES = {"images": str, "prompt": str | None, "resolution": int | None, "controlnet": str | None, "folder": str}
OPTION_TYPES |= dict.fromkeys(("strength", "guidance_scale", "controlnet_scale"), float)
OPTION_TYPES |= {"steps": int, "seed": int, "adapter_scales": list[float]}


@hydra_main("stylize")
def main(cfg):
    from sdft.config import check_config, check_option_types

    check_config(cfg)
    check_option_types(cfg, OPTION_TYPES)
    from sdft.apps.load_model import open_model, resolve_model_config
    from sdft.apps.stylize.controlnet import choose_controlnet, load_controlnet
    from sdft.apps.stylize.style_transfer import StyleTransfer, list_input_images, stylize_images
    from sdft.training.export.trigger_words import find_trigger_words

    files = list_input_images(cfg.images)
    run_cfg, run = resolve_model_config(cfg)
    trigger_words = find_trigger_words(run) if run else []
    prompt = cfg.prompt if cfg.prompt is not None else ", ".join(trigger_words)
    if not prompt:
        raise ValueError("prompt=null: describe the image content, including the trigger words of the style")
    resolution = cfg.resolution or run_cfg.get("resolution") or 512
    transfer = StyleTransfer(
        prompt,
        resolution,
        cfg.strength,
        cfg.guidance_scale,
        cfg.controlnet_scale,
        cfg.steps,
        tuple(cfg.adapter_scales),
        cfg.seed,
    )
    loaded = open_model(cfg)
    loaded.model.latent_shape(resolution)
    name = cfg.controlnet or choose_controlnet(loaded.model)
    controlnet = None if name == "none" else load_controlnet(name, loaded.model)
    if controlnet:
        controlnet.to(loaded.model.unet.device)
    metadata = {
        "model": loaded.model.name,
        "run": str(run) if run else None,
        "adapters": [str(file) for file in loaded.adapters],
        "weights": loaded.weights,
        "controlnet": name,
        "images": [str(file) for file in files],
    }
    folder = Path(cfg.folder)
    sheet = stylize_images(transfer, loaded.model, files, controlnet, folder, metadata)
    scale = transfer.controlnet_scale if controlnet else 0
    print_text(f'prompt     "{prompt}" · strength {transfer.strength:g} · controlnet_scale {scale:g}')
    print_text(f"strips     {len(files)} in {folder}/")
    print_text(f"images     {sheet}")


if __name__ == "__main__":
    main()
