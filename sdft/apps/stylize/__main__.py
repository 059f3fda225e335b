"""Pictures in a learned style: sdft stylize images=PHOTOS run=FOLDER"""

from pathlib import Path

from sdft.cli.entry_point import hydra_main

OPTION_TYPES = {"images": str, "prompt": str | None, "resolution": int | None, "controlnet": str, "folder": str}
OPTION_TYPES |= dict.fromkeys(("strength", "guidance_scale", "controlnet_scale"), float)
OPTION_TYPES |= {"steps": int, "seed": int, "adapter_scales": list[float]}


@hydra_main("stylize")
def main(cfg):
    from sdft.config import check_config, check_option_types

    check_config(cfg)
    check_option_types(cfg, OPTION_TYPES)
    from sdft.apps.load_model import open_model, resolve_model_config
    from sdft.apps.stylize.controlnet import load_controlnet
    from sdft.apps.stylize.img2img import StyleTransfer, list_input_images, stylize_images
    from sdft.training.export.trigger_words import find_trigger_words

    files = list_input_images(cfg.images)
    run_cfg, run = resolve_model_config(cfg)
    words = find_trigger_words(run) if run else []
    prompt = cfg.prompt if cfg.prompt is not None else ", ".join(words)
    if not prompt:
        raise ValueError("prompt=null: give what the pictures should show, with the words that call up the style")
    resolution = cfg.resolution or run_cfg.get("resolution") or 512
    work = StyleTransfer(
        prompt,
        resolution,
        cfg.strength,
        cfg.guidance_scale,
        cfg.controlnet_scale,
        cfg.steps,
        tuple(cfg.adapter_scales),
        cfg.seed,
    )
    opened = open_model(cfg)
    opened.model.latent_shape(resolution)
    controlnet = None if cfg.controlnet == "none" else load_controlnet(cfg.controlnet, opened.model)
    if controlnet:
        controlnet.to(opened.model.unet.device)
    about = {
        "model": opened.model.name,
        "run": str(run) if run else None,
        "adapters": [str(file) for file in opened.adapters],
        "weights": opened.weights,
        "controlnet": cfg.controlnet,
        "images": [str(file) for file in files],
    }
    folder = Path(cfg.folder)
    found = stylize_images(work, opened.model, files, controlnet, folder, about)
    print(f'prompt   "{prompt}" · strength {work.strength:g} · control {work.control if controlnet else 0:g}')
    print(f"made     {len(files)} strips in {folder}/")
    print(f"look     {found}")


if __name__ == "__main__":
    main()
