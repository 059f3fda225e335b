"""Pictures in a learned style: their shape and edges are kept, and what the LoRA does is shown beside what it does not."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdft.apps.stylize.controlnet import detect_edges, load_controlnet
from sdft.apps.stylize.img2img import StyleTransfer, list_input_images, load_resized_image, stylize_images
from sdft.data.digits import InkedDigits
from sdft.models.embedded import ASSETS_FOLDER
from sdft.models.loading import load_stable_diffusion

QUICK = {"steps": 4, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def model():
    return load_stable_diffusion("tiny-sd")


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return InkedDigits(1)[3].image


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory) -> Path:
    """A LoRA that does something."""
    from sdft.methods.lora import LoRA

    folder, method, fresh = tmp_path_factory.mktemp("lora"), LoRA(2, 2), load_stable_diffusion("tiny-sd")
    torch.manual_seed(1)
    method.prepare(fresh)
    for name, weight in fresh.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn_like(weight) * 0.3
    method.save(fresh, folder, "lora")
    return folder


def control(unet, where: Path, tiny: bool = True, **changes) -> Path:
    """A ControlNet of a UNet, as its authors begin it: with zero convolutions, so that it changes nothing."""
    from diffusers import ControlNetModel

    torch.manual_seed(0)
    size = {"conditioning_embedding_out_channels": (16, 32, 96)} if tiny else {}
    net = ControlNetModel.from_unet(unet, **size)
    for name, weight in net.named_parameters():
        if changes.get("loud") and name.startswith(("controlnet_", "controlnet_mid")) and weight.ndim == 4:
            weight.data = torch.randn_like(weight) * 0.3
    net.save_pretrained(where)
    return where


def far(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


def test_a_controlnet_as_it_begins_is_plain_image_to_image(model, picture, tmp_path):
    net = load_controlnet(str(control(model.unet, tmp_path)), model)
    work = StyleTransfer("a handwritten seven in red ink", 32, **QUICK)
    drawn = work(model, picture)
    assert far(work(model, picture, net), drawn) <= 1 and far(drawn, picture) > 20


def test_what_it_has_learned_holds_as_much_as_asked(model, picture, tmp_path):
    net = load_controlnet(str(control(model.unet, tmp_path, loud=True)), model)
    words = {"prompt": "a handwritten seven in red ink", "resolution": 32, **QUICK}
    none, half, whole = (StyleTransfer(**words, control=scale)(model, picture, net) for scale in (0, 0.1, 1))
    assert far(none, StyleTransfer(**words)(model, picture)) <= 1 and far(none, half) > 5 and far(half, whole) > 5


def test_little_strength_leaves_the_picture_nearly_as_it_was(model, picture):
    near, other = (
        np.abs(
            np.asarray(StyleTransfer("a seven", 32, s, 2.0, steps=10)(model, picture), int) - np.asarray(picture, int)
        )
        for s in (0.1, 1.0)
    )
    assert near.mean() < 10 < 2 * near.mean() < other.mean()


def test_the_same_words_draw_the_same_picture_whatever_was_drawn_before(model, picture):
    work = StyleTransfer("a handwritten seven", 32, **QUICK)
    first = work(model, picture)
    torch.manual_seed(5)
    work(model, detect_edges(picture))
    assert far(work(model, picture), first) == 0


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((640, 480), (592, 440)), ((300, 900), (296, 888)), ((512, 512), (512, 512)), ((31, 40), (448, 584))],
)
def test_a_picture_keeps_its_shape_at_the_models_area(size, wanted, tmp_path):
    Image.new("RGB", size, "red").save(tmp_path / "a.png")
    found = load_resized_image(tmp_path / "a.png", 512, 8)
    assert found.size == wanted and found.getpixel((5, 5)) == (255, 0, 0)
    assert abs(found.width / found.height / (size[0] / size[1]) - 1) < 0.02


def test_edges_are_white_lines_on_black(picture):
    board = Image.new("RGB", (32, 32), "black")
    board.paste("white", (8, 8, 24, 24))
    found = np.asarray(detect_edges(board))
    assert set(np.unique(found)) == {0, 255} and found[16, 15].sum() == 0 and found[16, 6:10].sum() > 0


def test_each_picture_becomes_a_strip_with_and_without_the_adapter(model, adapter, picture, tmp_path):
    from sdft.lora.scaling import load_adapters

    picture.save(tmp_path / "ä b.png")
    wide = Image.new("RGB", (64, 32), "navy")
    wide.save(tmp_path / "wide.jpg")
    worn = load_stable_diffusion("tiny-sd")
    load_adapters(worn, [adapter])
    work = StyleTransfer("a handwritten seven", 32, adapter_scales=(0.5, 1.0), **QUICK)
    found = stylize_images(work, worn, list_input_images(str(tmp_path)), None, tmp_path / "out", {"run": None})
    names = {path.name for path in (tmp_path / "out").iterdir()}
    labels = ("before", "without-lora", "lora-at-0-5", "after")
    assert names == {f"{stem}-{label}.png" for stem in ("000-wide", "001-ä-b") for label in labels} | {
        "strips.png",
        "settings.json",
    }
    shown = {label: Image.open(tmp_path / "out" / f"001-ä-b-{label}.png") for label in labels}
    assert far(shown["before"], picture) == 0 and far(shown["without-lora"], work(model, picture)) <= 1
    assert far(shown["after"], shown["without-lora"]) > 20 and far(shown["after"], shown["lora-at-0-5"]) > 5
    assert Image.open(tmp_path / "out" / "000-wide-after.png").size == (48, 24)
    told = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert told["strength"] == 0.5 and told["made"][1]["size"] == [32, 32] and Image.open(found).width > 4 * 256


@pytest.mark.parametrize("fault", ["pickle", "code", "width", "pixels", "nothing", "hub"])
def test_a_controlnet_that_does_not_fit_is_refused_in_one_line(fault, model, tmp_path):
    place = control(model.unet, tmp_path / "net", tiny=fault != "pixels")
    config = json.loads((place / "config.json").read_text())
    if fault == "pickle":
        (place / "diffusion_pytorch_model.safetensors").rename(place / "diffusion_pytorch_model.bin")
    elif fault == "code":
        (place / "config.json").write_text(json.dumps(config | {"_class_name": "Evil"}))
    elif fault == "width":
        unet = type(model.unet).from_config(dict(model.unet.config) | {"cross_attention_dim": 32})
        place = control(unet, tmp_path / "other")
    name = {"nothing": str(tmp_path / "gone"), "hub": "nobody/nothing-at-all"}.get(fault, str(place))
    line = {
        "pickle": "no .safetensors",
        "code": "describes Evil",
        "width": r"made for another base: cross_attention_dim 32, and .* has 64",
        "pixels": "made for another base: 8 pixels a latent, not 4",
        "nothing": "no such folder",
        "hub": "the hub cannot be reached; give a folder",
    }[fault]
    with pytest.raises(ValueError, match=line) as refusal:
        load_controlnet(name, model)
    assert str(refusal.value).startswith("controlnet=") and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ({"strength": 0}, "strength=0: choose more than 0, up to 1"),
        ({"strength": 0.1, "steps": 5}, "leaves no step"),
        ({"controlnet_scale": -1}, "controlnet_scale=-1: choose 0 or more"),
        ({"adapter_scales": ()}, r"adapter_scales=\[\]: give at least one"),
        ({"steps": 0}, "steps=0: choose from 1"),
    ],
)
def test_words_without_sense_are_refused(words, line):
    with pytest.raises(ValueError, match=line):
        StyleTransfer("a cat", 32, **words)


def test_pictures_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no pictures in it"):
        list_input_images(str(tmp_path))
    with pytest.raises(ValueError, match="no such picture or folder"):
        list_input_images(str(tmp_path / "a.png"))
    Image.new("RGB", (900, 100)).save(tmp_path / "long.png")
    with pytest.raises(ValueError, match="crop it to at most 4:1"):
        load_resized_image(tmp_path / "long.png", 32, 8)


def reduced(folder: Path) -> Path:
    """Stable Diffusion 1.5 as it is built, but narrow."""
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


def test_it_works_on_stable_diffusion_and_the_published_controlnets_as_they_are_built(tmp_path, photographs):
    torch.manual_seed(0)
    model = load_stable_diffusion(str(reduced(tmp_path / "model")), weights="random")
    net = load_controlnet(str(control(model.unet, tmp_path / "net", tiny=False)), model)
    assert list(net.config.conditioning_embedding_out_channels) == [16, 32, 96, 256]
    photo = load_resized_image(photographs / "china.jpg", 64, model.size_multiple)
    work = StyleTransfer("a photo", 64, **QUICK)
    assert work(model, photo, net).size == photo.size and photo.size[0] % 8 == 0
    assert far(work(model, photo, net), work(model, photo)) <= 1


def test_the_program_draws_a_runs_style_and_asks_for_what_it_cannot_know(shared, model, tmp_path, monkeypatch, capsys):
    from sdft.apps.stylize.__main__ import main

    _, run = shared("steps=1", "data.per_digit=1", "rank=2", "sample_every=0")
    Image.new("RGB", (40, 30), "navy").save(tmp_path / "a.png")
    net = control(model.unet, tmp_path / "net")
    words = [f"images={tmp_path / 'a.png'}", f"run={run}", f"folder={tmp_path / 'out'}", "steps=2"]
    monkeypatch.setattr(sys, "argv", ["stylise", *words, f"controlnet={net}"])
    main()
    told = capsys.readouterr().out
    assert 'prompt   "handwritten, neon, light" · strength 0.5 · control 0.5' in told
    assert f"look     {tmp_path / 'out' / 'strips.png'}" in told
    assert {"000-a-edges.png", "000-a-without-lora.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(sys, "argv", ["stylise", words[0], "model=tiny", "controlnet=none"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == (
        "error: prompt=null: give what the pictures should show, with the words that call up the style\n"
    )
