"""Style transfer keeps aspect ratio and edges; strips compare results with and without the LoRA."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdft.apps.stylize.controlnet import detect_edges, load_controlnet
from sdft.apps.stylize.style_transfer import StyleTransfer, list_input_images, load_resized_image, stylize_images
from sdft.data.inked_digits import InkedDigits
from sdft.models.embedded import ASSETS_FOLDER
from sdft.models.loading import load_stable_diffusion

QUICK = {"steps": 4, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def model():
    return load_stable_diffusion("tiny-sd")


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return InkedDigits(1)[3].image


@pytest.fixture(scope="module", params=[False, True], ids=["lora", "dora"])
def adapter(request, tmp_path_factory) -> Path:
    """A LoRA or DoRA with random weights."""
    from sdft.methods.lora import LoRA

    folder, method = tmp_path_factory.mktemp("lora"), LoRA(2, 2, use_dora=request.param)
    other = load_stable_diffusion("tiny-sd")
    torch.manual_seed(1)
    method.prepare(other)
    for name, weight in other.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn_like(weight) * 0.3
        if "lora_magnitude_vector" in name:
            weight.data = weight * 1.2
    method.save(other, folder, "lora")
    return folder


def save_controlnet(unet, folder: Path, tiny: bool = True, random: bool = False) -> Path:
    """A ControlNet initialised from a UNet; its zero convolutions have no effect unless `random`."""
    from diffusers import ControlNetModel

    torch.manual_seed(0)
    size = {"conditioning_embedding_out_channels": (16, 32, 96)} if tiny else {}
    net = ControlNetModel.from_unet(unet, **size)
    for name, weight in net.named_parameters():
        if random and name.startswith(("controlnet_", "controlnet_mid")) and weight.ndim == 4:
            weight.data = torch.randn_like(weight) * 0.3
    net.save_pretrained(folder)
    return folder


def compute_max_difference(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


def test_untrained_controlnet_is_plain_image_to_image(model, image, tmp_path):
    net = load_controlnet(str(save_controlnet(model.unet, tmp_path)), model)
    transfer = StyleTransfer("a handwritten seven in red ink", 32, **QUICK)
    plain = transfer(model, image)
    assert compute_max_difference(transfer(model, image, net), plain) <= 1 and compute_max_difference(plain, image) > 20


def test_controlnet_scale_weights_its_effect(model, image, tmp_path):
    net = load_controlnet(str(save_controlnet(model.unet, tmp_path, random=True)), model)
    options = {"prompt": "a handwritten seven in red ink", "resolution": 32, **QUICK}
    off, weak, full = (StyleTransfer(**options, controlnet_scale=s)(model, image, net) for s in (0, 0.1, 1))
    assert (
        compute_max_difference(off, StyleTransfer(**options)(model, image)) <= 1
        and compute_max_difference(off, weak) > 5
        and compute_max_difference(weak, full) > 5
    )


def test_low_strength_keeps_most_of_the_image(model, image):
    weak, full = (
        np.abs(np.asarray(StyleTransfer("a seven", 32, s, 2.0, steps=10)(model, image), int) - np.asarray(image, int))
        for s in (0.1, 1.0)
    )
    assert weak.mean() < 10 < 2 * weak.mean() < full.mean()


def test_results_are_reproducible_after_other_generations(model, image):
    transfer = StyleTransfer("a handwritten seven", 32, **QUICK)
    first = transfer(model, image)
    torch.manual_seed(5)
    transfer(model, detect_edges(image))
    assert compute_max_difference(transfer(model, image), first) == 0


@pytest.mark.parametrize(
    ("size", "expected"),
    [((640, 480), (592, 440)), ((300, 900), (296, 888)), ((512, 512), (512, 512)), ((31, 40), (448, 584))],
)
def test_resized_image_keeps_its_aspect_ratio_at_the_models_area(size, expected, tmp_path):
    Image.new("RGB", size, "red").save(tmp_path / "a.png")
    image = load_resized_image(tmp_path / "a.png", 512, 8)
    assert image.size == expected and image.getpixel((5, 5)) == (255, 0, 0)
    assert abs(image.width / image.height / (size[0] / size[1]) - 1) < 0.02


def test_edges_are_white_lines_on_black():
    image = Image.new("RGB", (32, 32), "black")
    image.paste("white", (8, 8, 24, 24))
    edges = np.asarray(detect_edges(image))
    assert set(np.unique(edges)) == {0, 255} and edges[16, 15].sum() == 0 and edges[16, 6:10].sum() > 0


def test_strips_show_each_image_with_and_without_the_adapter(model, adapter, image, tmp_path):
    from sdft.lora.scaling import load_adapters

    image.save(tmp_path / "ä b.png")
    wide = Image.new("RGB", (64, 32), "navy")
    wide.save(tmp_path / "wide.jpg")
    adapted = load_stable_diffusion("tiny-sd")
    load_adapters(adapted, [adapter])
    transfer = StyleTransfer("a handwritten seven", 32, adapter_scales=(0.5, 1.0), **QUICK)
    sheet = stylize_images(transfer, adapted, list_input_images(str(tmp_path)), None, tmp_path / "out", {"run": None})
    names = {path.name for path in (tmp_path / "out").iterdir()}
    labels = ("before", "without-lora", "lora-at-0-5", "after")
    assert names == {f"{stem}-{label}.png" for stem in ("000-wide", "001-ä-b") for label in labels} | {
        "strips.png",
        "settings.json",
    }
    tiles = {label: Image.open(tmp_path / "out" / f"001-ä-b-{label}.png") for label in labels}
    assert (
        compute_max_difference(tiles["before"], image) == 0
        and compute_max_difference(tiles["without-lora"], transfer(model, image)) == 0
    )
    assert (
        compute_max_difference(tiles["after"], tiles["without-lora"]) > 20
        and compute_max_difference(tiles["after"], tiles["lora-at-0-5"]) > 5
    )
    assert Image.open(tmp_path / "out" / "000-wide-after.png").size == (48, 24)
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert (
        settings["strength"] == 0.5 and settings["results"][1]["size"] == [32, 32] and Image.open(sheet).width > 4 * 256
    )


@pytest.mark.parametrize("fault", ["pickle", "code", "width", "pixels", "nothing", "hub"])
def test_invalid_or_incompatible_controlnet_is_rejected_in_one_line(fault, model, tmp_path):
    folder = save_controlnet(model.unet, tmp_path / "net", tiny=fault != "pixels")
    config = json.loads((folder / "config.json").read_text())
    if fault == "pickle":
        (folder / "diffusion_pytorch_model.safetensors").rename(folder / "diffusion_pytorch_model.bin")
    elif fault == "code":
        (folder / "config.json").write_text(json.dumps(config | {"_class_name": "Evil"}))
    elif fault == "width":
        unet = type(model.unet).from_config(dict(model.unet.config) | {"cross_attention_dim": 32})
        folder = save_controlnet(unet, tmp_path / "other")
    name = {"nothing": str(tmp_path / "gone"), "hub": "nobody/nothing-at-all"}.get(fault, str(folder))
    message = {
        "pickle": r"no \.safetensors",
        "code": "Evil",
        "width": "cross_attention_dim 32, .* 64",
        "pixels": "8 pixels .* 4",
        "nothing": "gone: ",
        "hub": "nobody/nothing-at-all: .*hub cannot be reached",
    }[fault]
    with pytest.raises(ValueError, match=message) as error:
        load_controlnet(name, model)
    assert str(error.value).startswith("controlnet=") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0}, "strength=0: "),
        ({"strength": 0.1, "steps": 5}, "steps=5 strength=0.1: "),
        ({"controlnet_scale": -1}, "controlnet_scale=-1: "),
        ({"adapter_scales": ()}, r"adapter_scales=\[\]: "),
        ({"steps": 0}, "steps=0: "),
    ],
)
def test_invalid_options_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        StyleTransfer("a cat", 32, **options)


def test_missing_and_elongated_images_are_rejected(tmp_path):
    with pytest.raises(ValueError, match="images=.*: no images "):
        list_input_images(str(tmp_path))
    with pytest.raises(ValueError, match="images=.*a.png: "):
        list_input_images(str(tmp_path / "a.png"))
    Image.new("RGB", (900, 100)).save(tmp_path / "long.png")
    with pytest.raises(ValueError, match="images=.*long.png: 900x100 px; .*4:1"):
        load_resized_image(tmp_path / "long.png", 32, 8)


def write_narrow_sd15(folder: Path) -> Path:
    """Stable Diffusion 1.5 with few channels and layers."""
    shutil.copytree(ASSETS_FOLDER / "sd15", folder)
    narrow = {
        "unet": {
            "block_out_channels": [32] * 4,
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
            "layers_per_block": 1,
        },
        "vae": {"block_out_channels": [32] * 4, "layers_per_block": 1},
        "text_encoder": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4},
    }
    for part, changes in narrow.items():
        file = folder / part / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def test_sd15_and_published_controlnet_architectures(tmp_path, photographs):
    torch.manual_seed(0)
    model = load_stable_diffusion(str(write_narrow_sd15(tmp_path / "model")), weights="random")
    net = load_controlnet(str(save_controlnet(model.unet, tmp_path / "net", tiny=False)), model)
    assert list(net.config.conditioning_embedding_out_channels) == [16, 32, 96, 256]
    photo = load_resized_image(photographs / "china.jpg", 64, model.size_multiple)
    transfer = StyleTransfer("a photo", 64, **QUICK)
    assert transfer(model, photo, net).size == photo.size and photo.size[0] % 8 == 0
    assert compute_max_difference(transfer(model, photo, net), transfer(model, photo)) <= 1


def test_command_uses_the_runs_trigger_words_and_requires_a_prompt_without_run(
    shared_run, model, tmp_path, monkeypatch, capsys
):
    from sdft.apps.stylize.__main__ import main

    _, run = shared_run("steps=1", "data.per_digit=1", "rank=2", "sample_every=0")
    Image.new("RGB", (40, 30), "navy").save(tmp_path / "a.png")
    net = save_controlnet(model.unet, tmp_path / "net")
    overrides = [f"images={tmp_path / 'a.png'}", f"run={run}", f"folder={tmp_path / 'out'}", "steps=2"]
    monkeypatch.setattr(sys, "argv", ["stylize", *overrides, f"controlnet={net}"])
    main()
    out = capsys.readouterr().out
    assert 'prompt     "handwritten, neon, light" · strength 0.5 · controlnet_scale 0.5' in out
    assert f"images     {tmp_path / 'out' / 'strips.png'}" in out
    assert {"000-a-edges.png", "000-a-without-lora.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(sys, "argv", ["stylize", overrides[0], "model=tiny", "controlnet=none"])
    with pytest.raises(SystemExit):
        main()
    error = capsys.readouterr().err
    assert error.startswith("error: prompt=null: ") and error.count("\n") == 1 and error.endswith("\n")
