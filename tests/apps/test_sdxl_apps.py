"""Every app works with a small Stable Diffusion XL: two text encoders, a pooled vector, and the geometry of images."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import compose_config
from omegaconf import open_dict
from PIL import Image
from test_stylize import compute_max_difference, save_controlnet

from sdft.apps.generate.__main__ import generate
from sdft.apps.morph.__main__ import main as morph
from sdft.apps.publish.publication import PublishRequest, write_publication
from sdft.apps.stylize.controlnet import choose_controlnet, load_controlnet
from sdft.apps.stylize.style_transfer import StyleTransfer
from sdft.data.digits import Digits
from sdft.data.prior_preservation import PriorPreservation
from sdft.evaluation.variants import build_file_variants
from sdft.methods.textual_inversion import TextualInversion
from sdft.models.image_cache import collect_image_settings
from sdft.models.loading import load_stable_diffusion
from sdft.models.precision import set_precision
from sdft.models.sampling import Sampling
from sdft.training.export.model_card import ModelCard

SAMPLING = ("sampling.steps=2", "sampling.scheduler=null", "sampling.guidance_scale=3")


@pytest.fixture(scope="module")
def base_options(small_model_folder):
    """Options that choose a small SDXL."""
    return ["model=sdxl", f"model.name={small_model_folder('sdxl')}", "resolution=32", "model.weights=random"]


@pytest.fixture(scope="module")
def xl_run(shared_run, base_options) -> Path:
    """A run of LoRA on both text encoders and the UNet."""
    options = ("steps=1", "rank=2", "alpha=2", "lr=0.05", "data.per_digit=1", "method.text_encoder=true")
    prompts = "prompts=[a handwritten two, a handwritten seven]"
    return shared_run(*base_options, *SAMPLING, *options, prompts, "metrics=digits", "protocol.images=1")[1]


@pytest.fixture
def generate_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*options: str, folder: str = "generated") -> list[Path]:
        cfg = compose_config(*options, f"folder={folder}", "accelerator=cpu", config="generate")
        with open_dict(cfg):
            cfg.pop("hydra")
        generate(cfg, {option.split("=")[0] for option in (*options, "folder=")})
        return sorted(Path(folder).glob("0*.png"))

    return run


def read_pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file), np.int16)


def read_metadata(file: Path) -> dict:
    return json.loads(Image.open(file).info["sdft"])


@pytest.mark.slow
def test_a_run_is_generated_reproduced_and_published(xl_run, generate_images):
    files = generate_images(f"run={xl_run}")
    samples = sorted((xl_run / "samples" / "step-000001").glob("*.png"))
    assert len(files) == len(samples) == 2
    for file, sample in zip(files, samples, strict=True):
        assert np.abs(read_pixels(file) - read_pixels(sample)).max() <= 2
    (again,) = generate_images(f"reproduce={files[1]}", f"run={xl_run}", folder="again")
    assert np.array_equal(read_pixels(again), read_pixels(files[1]))
    card = (write_publication(PublishRequest(xl_run)) / "README.md").read_text()
    for text in (card, (xl_run / "adapter" / "README.md").read_text()):
        assert "StableDiffusionXLPipeline.from_pretrained(base)" in text and "StableDiffusionPipeline" not in text
        assert '"stable-diffusion-xl"' in text
    scores = json.loads((xl_run / "evaluation" / "scores.json").read_text())
    assert [state["label"] for state in scores["states"]] == ["base", "fine-tuned"]


@pytest.mark.slow
def test_a_run_is_stylized_compared_and_listed_in_the_gallery(xl_run, tmp_path, monkeypatch):
    testclient = pytest.importorskip("starlette.testclient")
    from sdft.apps.compare import main as compare
    from sdft.apps.gallery.app import create_app
    from sdft.apps.gallery.server import build_run_index
    from sdft.apps.stylize.__main__ import main as stylize

    monkeypatch.chdir(tmp_path)
    Digits("neon", [3], 1)[0].image.save("a.png")
    options = [f"run={xl_run}", "images=a.png", "controlnet=none", "steps=2", "folder=out", "accelerator=cpu"]
    monkeypatch.setattr(sys, "argv", ["stylize", *options])
    stylize()
    assert {"000-a-without-lora.png", "000-a-after.png"} <= {file.name for file in Path("out").iterdir()}
    monkeypatch.setattr(sys, "argv", ["compare", str(xl_run)])
    compare()
    assert Path("outputs/comparison/compare.html").is_file()
    client = testclient.TestClient(create_app(build_run_index(xl_run.parent, None)), base_url="http://127.0.0.1:8000")
    assert xl_run.name in client.get("/").text
    page = client.get(f"/run/runs/{xl_run.name}")
    assert page.status_code == 200 and "sdxl" in page.text


@pytest.mark.slow
@pytest.mark.parametrize("empty_caption", ["zeros", "encoded"])
def test_the_code_of_a_card_loads_both_embeddings_of_a_token(small_xl, tmp_path, monkeypatch, empty_caption):
    monkeypatch.chdir(tmp_path)
    model, method = small_xl(), TextualInversion("<mine>", num_vectors=2, initializer_token="cat")
    model.build_pipeline().save_pretrained("base")
    model.empty_caption = empty_caption
    method.prepare(model)
    for network in model.text_encoders.values():
        network.get_input_embeddings().rows.data.normal_()
    method.save(model, Path(), "word")
    sampling = Sampling(2, 5.0, original_size=[64, 48])
    facts = {"result": "embedding", "name": "word", "base": str(tmp_path / "base"), "prediction": "epsilon"}
    facts |= {
        "method": "textualinversion",
        "steps": 1,
        "resolution": 32,
        "prompt": "a <mine> dog",
        "command": ["train.py"],
    }
    facts |= {"pipeline": "StableDiffusionXLPipeline", "empty_caption": empty_caption, "token": "<mine>"}
    card = ModelCard(**facts, sampling=sampling)
    code = card.render().split("```python\n")[1].split("```")[0].replace("/PATH/TO/base", "base")
    scope = {}
    exec(code, scope)
    (expected,) = sampling(model, ["a <mine> dog"], 32)
    assert compute_max_difference(scope["image"], expected) <= 2


def test_class_images_depend_on_the_empty_caption(small_xl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for empty_caption in ("zeros", "encoded"):
        prior = PriorPreservation("a three", images=1)
        (image,) = prior.load_class_images(small_xl(empty_caption=empty_caption), Sampling(1, 3.0), 32)
        assert image.image.size == (32, 32)
    assert len(list(Path("outputs/class_images").iterdir())) == 2


def test_a_pipeline_of_another_family_is_named(small_xl, tiny, tmp_path):
    tiny().build_pipeline().save_pretrained(tmp_path)
    (_, variant) = build_file_variants(tmp_path, [1.0])
    variant.check(tiny())
    with pytest.raises(
        ValueError, match="adapter=.*: a pipeline of Stable Diffusion 1 or 2, but .* is Stable Diffusion XL"
    ):
        variant.check(small_xl())


def test_the_geometry_is_restored_from_an_image(generate_images, base_options):
    quick = [*base_options, "prompts=[a cat]", "steps=2", "scheduler=euler"]
    (plain,) = generate_images(*quick, folder="plain")
    (cropped,) = generate_images(
        *quick, "original_size=[512,1024]", "crops_coords_top_left=[0,256]", "target_size=[64,64]", folder="cropped"
    )
    assert not np.array_equal(read_pixels(plain), read_pixels(cropped))
    assert "original_size" not in read_metadata(plain)
    facts = read_metadata(cropped)
    assert [facts[key] for key in ("original_size", "crops_coords_top_left", "target_size")] == [
        [512, 1024],
        [0, 256],
        [64, 64],
    ]
    model = [option for option in base_options if not option.startswith("resolution")]
    (again,) = generate_images(f"reproduce={cropped}", *model, folder="again")
    assert np.array_equal(read_pixels(again), read_pixels(cropped))


def test_the_geometry_is_that_of_diffusers(small_xl):
    model = small_xl()
    sizes = {"original_size": [512, 1024], "crops_coords_top_left": [0, 256], "target_size": [64, 48]}
    pipeline = model.build_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        "a cat", **sizes, height=32, width=48, num_inference_steps=2, generator=torch.Generator().manual_seed(0)
    )
    (image,) = Sampling(2, 5.0, **sizes)(model, ["a cat"], (48, 32))
    assert compute_max_difference(image, expected.images[0]) <= 1


def test_a_model_without_sizes_refuses_them_in_one_line(tiny, generate_images):
    with pytest.raises(ValueError, match=r"sampling.original_size=\[9, 9\]: Stable Diffusion 1 or 2 has no such input"):
        Sampling(1, original_size=[9, 9])(tiny(), ["a cat"], 32)
    with pytest.raises(ValueError, match=r"^target_size=\[0, 9\]: give \[height,width\]"):
        generate_images("model=tiny", "prompts=[a]", "target_size=[0,9]")


def test_an_image_depends_on_the_empty_caption_and_the_geometry(small_xl):
    settings = [
        collect_image_settings(small_xl(), Sampling(2), 32),
        collect_image_settings(small_xl(empty_caption="encoded"), Sampling(2), 32),
        collect_image_settings(small_xl(), Sampling(2, target_size=[9, 9]), 32),
    ]
    assert len({json.dumps(one) for one in settings}) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_are_stylized_with_edges(small_xl, tmp_path, dtype):
    model, image = small_xl(), Digits("neon", [3], 1)[0].image
    folder = save_controlnet(model.unet, tmp_path)
    set_precision(model, dtype)
    net = load_controlnet(str(folder), model)
    transfer = StyleTransfer("a cat", 32, steps=4, guidance_scale=2.0)
    plain = transfer(model, image)
    limit = 1 if dtype is torch.float32 else 12
    assert compute_max_difference(transfer(model, image, net), plain) <= limit < compute_max_difference(plain, image)


def describe_model(width: int) -> SimpleNamespace:
    return SimpleNamespace(name="a base", unet=SimpleNamespace(config=SimpleNamespace(cross_attention_dim=width)))


def test_a_controlnet_of_another_family_is_refused(small_xl, tiny, tmp_path):
    folder = save_controlnet(small_xl().unet, tmp_path)
    with pytest.raises(ValueError, match="made for another base"):
        load_controlnet(str(folder), tiny())
    for width, name in ((768, "lllyasviel/sd-controlnet-canny"), (2048, "diffusers/controlnet-canny-sdxl-1.0")):
        assert choose_controlnet(describe_model(width)) == name
    for model in (small_xl(), describe_model(1024)):  # SD 2 has none as safetensors in the diffusers layout
        with pytest.raises(ValueError, match="controlnet=null: .*; give a folder or hub id, or controlnet=none"):
            choose_controlnet(model)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_images_are_morphed(base_options, tmp_path, monkeypatch, precision):
    monkeypatch.chdir(tmp_path)
    for style in ("neon", "blueprint"):
        Digits(style, [3], 1)[0].image.save(f"{style}.png")
    options = ["images=[neon.png,blueprint.png]", "prompts=[a three,a four]", "perceptual=tiny-clip", "steps=1"]
    options += ["ddim_steps=4", "frames=3", "accelerator=cpu", "folder=out", f"precision={precision}"]
    monkeypatch.setattr(sys, "argv", ["morph", *base_options, *options])
    morph()
    assert len(list(Path("out/frames").iterdir())) == 3


@pytest.mark.parametrize("app", ["generate", "evaluate", "morph", "stylize"])
def test_every_app_takes_the_resolution_of_the_model(app):
    required = {"evaluate": [], "morph": ["images=[a,b]", "prompts=[a]"], "stylize": ["images=a"]}.get(app, [])
    assert compose_config("model=sdxl", *required, config=app).resolution == 1024


def test_metadata_of_an_image_has_every_option_of_the_model():
    from inspect import signature

    from sdft.apps.generate.png_metadata import METADATA_STRUCTURE

    stored = {key.rstrip("?") for key in METADATA_STRUCTURE["model"]}
    assert stored == set(signature(load_stable_diffusion).parameters)
