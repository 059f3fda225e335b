"""The adapters of the two images, from files, from the cache, or trained now."""

from pathlib import Path

from hydra.utils import instantiate

from sdft.lora.interpolation import AdapterInterpolator
from sdft.lora.scaling import load_adapters
from sdft.models.precision import set_precision
from sdft.runs.terminal import print_text


def build_adapter_interpolator(cfg, model, images, mode: str, precision) -> AdapterInterpolator | None:
    """Add one adapter per image to the model, cast it to `precision`, and interpolate them as `mode` names it; none for none."""
    files = [] if mode == "none" else choose_adapter_files(cfg, model, images, precision)
    names = load_adapters(model, files)
    set_precision(model, precision.dtype)
    return AdapterInterpolator(model, names, mode) if names else None


def choose_adapter_files(cfg, model, images, precision) -> list[Path]:
    """Two adapters: those of the command line, cached ones, or new ones."""
    if cfg.adapters is None:
        return load_or_train_adapters(cfg, model, images, precision)
    files = [Path(file).expanduser() for file in cfg.adapters]
    if len(files) != 2:
        raise ValueError(f"adapters={list(cfg.adapters)}: got {len(files)}; give two, as [A,B]")
    return files


def load_or_train_adapters(cfg, model, images, precision) -> list[Path]:
    """Folders of the adapters in the cache; the model is on the CPU during the training of the missing ones."""
    trainer, cache_folder, device = instantiate(cfg.single_image), Path(cfg.adapter_cache), model.unet.device
    precision.check_device(device)
    model.cpu()
    folders = []
    for image in images:
        adapter = trainer.load_or_train(model, image, precision, cfg.accelerator, cache_folder)
        origin = f"trained in {adapter.seconds:.0f} s" if adapter.seconds else "cached"
        print_text(f"adapter    {adapter.folder} ({origin})", flush=True)
        folders.append(adapter.folder)
    model.to(device)
    return folders
