"""Generated images carry their settings, form grids, and are reproduced bit for bit."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import compose_config
from forked import run_forked
from omegaconf import open_dict
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file

from sdft.apps.generate.__main__ import generate
from sdft.methods.lora import LoRA
from sdft.models.sampling import Sampling

TINY = ["model=tiny", "model.weights=random", "accelerator=cpu"]
QUICK = [*TINY, "steps=2", "prompts=[a cat,two dogs]"]


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory) -> Path:
    """A DoRA with large changes, also of the magnitudes."""
    folder, model, method = tmp_path_factory.mktemp("adapter"), tiny(), LoRA(rank=2, alpha=2, use_dora=True)
    method.prepare(model)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    method.save(model, folder, "one")
    return folder / "pytorch_lora_weights.safetensors"


@pytest.fixture
def generate_images(tmp_path, monkeypatch, capsys):
    """Function that generates into `folder` with command-line options; returns the images by number, and stdout."""
    monkeypatch.chdir(tmp_path)

    def run(*options: str, folder: str = "generated"):
        cfg = compose_config(*options, f"folder={folder}", config="generate")
        with open_dict(cfg):
            cfg.pop("hydra")
        generate(cfg, {option.split("=")[0] for option in (*options, "folder=")})
        return sorted(Path(folder).glob("0*.png")), capsys.readouterr().out

    return run


def read_pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file), np.int16)


def read_metadata(file: Path) -> dict:
    return json.loads(Image.open(file).info["sdft"])


def rewrite_metadata(file: Path, **changes) -> Path:
    """Copy of the image with changed metadata, as an attacker could write it."""
    texts = PngImagePlugin.PngInfo()
    texts.add_text("sdft", json.dumps(read_metadata(file) | changes))
    Image.open(file).save("forged.png", pnginfo=texts)
    return Path("forged.png")


def test_images_match_sampling_for_any_batch_size(generate_images, tiny):
    files, out = generate_images(*QUICK, "images=2", "batch_size=3")
    assert [read_metadata(file)["seed"] for file in files] == [0, 1, 0, 1]
    assert "generate   4 images in generated/" in out
    expected = Sampling(steps=2, guidance_scale=3.0, images=2)(tiny(), ["a cat", "two dogs"], 32)
    for file, image in zip(files, expected, strict=True):
        assert np.abs(read_pixels(file) - np.asarray(image, np.int16)).max() <= 2
    assert (Path("generated") / "grid.png").is_file()


def test_an_image_is_reproduced_bit_for_bit_at_any_batch_position(generate_images, adapter):
    options = [*QUICK, "images=3", "batch_size=4", "scheduler=euler_a", "negative_prompt='blue, grün'", "height=40"]
    files, _ = generate_images(*options, f"adapters=[{adapter}]", "weights=[0.7]", "strength=0.9", "seed=5")
    for file in (files[2], files[5]):  # in batches of four and of two
        (reproduced,), _ = generate_images(
            f"reproduce={file}", f"adapters=[{adapter}]", "accelerator=cpu", folder=f"reproduced {file.stem}"
        )
        assert np.array_equal(read_pixels(reproduced), read_pixels(file))
        assert read_metadata(reproduced) == read_metadata(file)
    assert read_metadata(files[5])["batch"] == [2, 1] and Image.open(files[5]).size == (32, 40)


def test_overrides_take_precedence_over_the_metadata_of_the_image(generate_images, adapter):
    (file, _), _ = generate_images(*QUICK, f"adapters=[{adapter}]", "seed=3")
    files, _ = generate_images(
        f"reproduce={file}", f"adapters=[{adapter}]", "x.strength=[0,1]", "steps=1", "accelerator=cpu", folder="other"
    )
    facts = [read_metadata(one) for one in files]
    assert [f["strength"] for f in facts] == [0, 1] and {f["steps"] for f in facts} == {1}
    assert {f["seed"] for f in facts} == {3} and {f["prompt"] for f in facts} == {"a cat"}
    sizes = generate_images(
        f"reproduce={file}", "adapters=[]", "model=tiny", "model.weights=random", "height=48", folder="sizes"
    )[0]
    assert Image.open(sizes[0]).size == (32, 48)


def test_strength_zero_is_bit_identical_to_the_base_even_for_a_dora(generate_images, adapter):
    base = generate_images(*QUICK, folder="base")[0]
    files = generate_images(*QUICK, f"adapters=[{adapter}]", "x.strength=[0,0.5,1]", folder="grid")[0]
    by = {(read_metadata(file)["prompt"], read_metadata(file)["strength"]): read_pixels(file) for file in files}
    assert len(by) == 6
    for file in base:
        prompt = read_metadata(file)["prompt"]
        assert np.array_equal(by[prompt, 0], read_pixels(file))
        assert len({by[prompt, strength].tobytes() for strength in (0, 0.5, 1)}) == 3


def test_cells_share_the_seed_and_differ_only_in_their_axes(generate_images, adapter):
    options = ["x.scheduler=[null,ddim,euler_a]", "y.weights=[[1,0],[0.5,-1]]", f"adapters=[{adapter},{adapter}]"]
    facts = [read_metadata(file) for file in generate_images(*TINY, "prompts=[a cat]", "steps=2", *options)[0]]
    rows = [(f["scheduler"], [one["weight"] for one in f["adapters"]]) for f in facts]
    assert sorted(rows, key=str) == sorted(
        [(s, w) for s in (None, "ddim", "euler_a") for w in ([1, 0], [0.5, -1])], key=str
    )
    varying = ("scheduler", "adapters", "sampler", "batch")
    assert len({json.dumps({k: v for k, v in f.items() if k not in varying}) for f in facts}) == 1


RUN = ("steps=2", "save_every=1", "checkpoints_total_limit=3", "lr=0.05", "data.per_digit=1", "sample_every=0")
ONE = ("prompts=[a cat]", "steps=1", "accelerator=cpu")


def test_a_run_supplies_its_options_and_checkpoints(shared_run, generate_images):
    run = shared_run(*RUN, "rank=2")[1]
    facts = json.loads((run / "samples" / "step-000002" / "samples.json").read_text())
    files, _ = generate_images(f"run={run}", "accelerator=cpu")
    assert [read_metadata(file)["prompt"] for file in files] == [fact["prompt"] for fact in facts]
    for file, fact in zip(files, facts, strict=True):  # equal up to rounding
        assert np.abs(read_pixels(file) - read_pixels(run / "samples" / "step-000002" / fact["file"])).max() <= 2
    of_steps, _ = generate_images(f"run={run}", "x.checkpoint=[0,1,2,result]", *ONE, folder="steps")
    zero, one, two, last = map(read_pixels, of_steps)
    assert np.abs(two - last).max() <= 2 < np.abs(one - two).max() and not np.array_equal(zero, one)
    (reproduced,), _ = generate_images(f"reproduce={of_steps[1]}", f"run={run}", folder="reproduced")
    assert read_metadata(reproduced)["checkpoint"] == "1"
    assert np.array_equal(read_pixels(reproduced), read_pixels(of_steps[1]))
    with pytest.raises(ValueError, match=r"checkpoint=7: .*1, 2"):
        generate_images(f"run={run}", "checkpoint=7", *ONE)


@pytest.mark.slow
def test_runs_are_compared_by_folder_or_by_rank(shared_run, generate_images):
    runs = [shared_run(*RUN, f"rank={rank}")[1] for rank in (2, 3)]
    single, _ = generate_images(f"run={runs[0]}", *ONE, folder="single")
    compared, _ = generate_images(f"x.run=[{runs[0]},{runs[1]}]", *ONE, folder="compared")
    assert np.array_equal(read_pixels(compared[0]), read_pixels(single[0]))
    assert not np.array_equal(read_pixels(compared[1]), read_pixels(single[0]))
    ranks, _ = generate_images(f"run={runs[0].parent}", "x.rank=[3,2]", *ONE, folder="ranks")
    assert np.array_equal(read_pixels(ranks[1]), read_pixels(single[0]))
    with pytest.raises(ValueError, match=r"x.rank=4: no .*2, 3"):
        generate_images(f"run={runs[0].parent}", "x.rank=[4]", *ONE)


@pytest.mark.slow
def test_a_full_fine_tuning_supports_only_strength_zero_and_one(shared_run, generate_images):
    _, run = shared_run("steps=1", "method=sft", "lr=0.01", "data.per_digit=1")
    quick = [f"run={run}", "prompts=[a cat]", "steps=1", "accelerator=cpu"]
    base, tuned = generate_images(*quick, "x.strength=[0,1]")[0]
    assert not np.array_equal(read_pixels(base), read_pixels(tuned))
    (reproduced,), _ = generate_images(f"reproduce={tuned}", f"run={run}", folder="reproduced")
    assert np.array_equal(read_pixels(reproduced), read_pixels(tuned))
    with pytest.raises(ValueError, match="strength=0.5: .*pipeline"):
        generate_images(*quick, "strength=0.5")


@pytest.mark.slow
def test_a_pissa_checkpoint_equals_the_result_but_has_no_strength(shared_run, generate_images):
    _, run = shared_run(*RUN, "method.init_lora_weights=pissa", "noise_offset=0")
    files, _ = generate_images(f"run={run}", "x.checkpoint=[2,result]", *ONE)
    assert np.abs(read_pixels(files[0]) - read_pixels(files[1])).max() <= 2
    with pytest.raises(ValueError, match="strength=0.5: .*ckpt"):
        generate_images(f"run={run}", "checkpoint=2", "strength=0.5", *ONE)


def test_invalid_options_give_one_line_errors(generate_images, adapter, tmp_path):
    weights = load_file(adapter)
    save_file(
        {key: torch.randn(*weight.shape[:-1], 7) for key, weight in weights.items()}, tmp_path / "wide.safetensors"
    )
    save_file({f"unet.elsewhere.{n}.lora_A.weight": torch.ones(2, 2) for n in "ab"}, tmp_path / "other.safetensors")
    errors = {
        ("adapters=[wide.safetensors]",): "adapters=wide.safetensors: .*sdft/assets/tiny-sd",
        ("adapters=[other.safetensors]",): "adapters=other.safetensors: .*unet.elsewhere.a",
        ("adapters=[nowhere.safetensors]",): "adapters=nowhere.safetensors: ",
        (f"adapters=[{adapter}]", "weights=[1,2]"): r"weights=\[1, 2\]: 2 for 1",
        ("weights=[1]",): r"weights=\[1\]: 1 for 0",
        ("width=30",): "width=30: .*32",
        ("height=9000",): "height=9000: .*8192",
        ("height=8192", "width=1024"): "width=1024 height=8192: .*2048",
        ("x.scheduler=[ddim,nope]",): "scheduler=nope: .*ddim, ddpm",
        ("x.steps=[1]", "x.seed=[1]"): "x.seed x.steps: ",
        ("x.steps=[1,two]",): "x.steps=two: ",
        ("x.steps=[0]",): "^steps=0: ",
        ("strength=0.5",): "strength=0.5: ",
        ("checkpoint=5",): "checkpoint=5: .*run",
    }
    for options, message in errors.items():
        with pytest.raises(ValueError, match=message) as error:
            generate_images(*QUICK, *options)
        assert "\n" not in str(error.value) and len(str(error.value)) < 500
    with pytest.raises(ValueError, match="prompts=null: "):
        generate_images(*TINY)
    assert not Path("generated").exists()


def test_a_changed_or_missing_adapter_is_an_error(generate_images, adapter):
    file = Path("copy.safetensors")
    file.write_bytes(adapter.read_bytes())
    image = generate_images(*QUICK, f"adapters=[{file}]")[0][0]
    save_file({key: weight * 2 for key, weight in load_file(file).items()}, file, metadata=read_header(adapter))
    with pytest.raises(ValueError, match=r"adapter copy.safetensors .*\(SHA-256 .* then, .* now\)"):
        generate_images(f"reproduce={image}", folder="reproduced")
    assert generate_images(f"reproduce={image}", f"adapters=[{file}]", folder="reproduced")[0]
    file.unlink()
    with pytest.raises(ValueError, match=r"adapter copy.safetensors \(SHA-256 .*adapters="):
        generate_images(f"reproduce={image}", folder="reproduced")


def read_header(file: Path) -> dict:
    from safetensors import safe_open

    with safe_open(file, "pt") as stream:
        return stream.metadata()


def test_a_changed_model_is_an_error(generate_images):
    image = generate_images(*QUICK)[0][0]
    forged = rewrite_metadata(image, model=read_metadata(image)["model"] | {"weights": "pretrained"})
    with pytest.raises(ValueError, match="weights of sdft/assets/tiny-sd .*SHA-256"):
        generate_images(f"reproduce={forged}", folder="reproduced")


def test_forged_metadata_neither_runs_code_nor_downloads(generate_images):
    image = generate_images(*QUICK)[0][0]
    model = read_metadata(image)["model"]
    for changes, message in {
        "elsewhere": ({"model": model | {"name": "evil/repo"}}, "model evil/repo .*conf/model/"),
        "revision": (
            {"model": model | {"name": "stable-diffusion-v1-5/stable-diffusion-v1-5", "revision": "refs/pr/1"}},
            "refs/pr/1 .*conf/model/",
        ),
        "target": ({"model": model | {"_target_": "os.system"}}, r"model._target_: would run other code"),
        "resolver": ({"prompt": "${oc.env:HOME}"}, r"prompt=\$.*never resolved"),
        "size": ({"width": 8192, "height": 8192}, "width=8192 height=8192: .*2048"),
        "path": ({"model": model | {"architecture": "../../x"}}, "model.architecture "),
        "run": ({"run": "/etc", "adapters": []}, "run /etc .*run=FOLDER"),
    }.values():
        with pytest.raises(ValueError, match=message):
            generate_images(f"reproduce={rewrite_metadata(image, **changes)}", folder="reproduced")


def test_an_image_reveals_no_folder_of_this_machine(generate_images, adapter, monkeypatch):
    file = generate_images(*QUICK, f"adapters=[{adapter}]")[0][0]
    assert (
        str(adapter.parent.parent).encode() not in file.read_bytes() and b'"file": "pytorch_lora_w' in file.read_bytes()
    )
    monkeypatch.setenv("HOME", str(adapter.parent))
    file = generate_images(*QUICK, f"adapters=[{adapter}]")[0][0]
    assert read_metadata(file)["adapters"][0]["file"] == "~/pytorch_lora_weights.safetensors"
    (reproduced,), _ = generate_images(f"reproduce={file}", folder="reproduced")
    assert np.array_equal(read_pixels(reproduced), read_pixels(file))


@pytest.mark.slow
def test_a_new_process_reproduces_an_image(tmp_path):
    run_app = partial(run_forked, "generate", name="-m sdft", cwd=tmp_path)
    run_app("model=tiny", "prompts=[a handwritten three]", "images=3", "folder=generated", "accelerator=cpu")
    image = tmp_path / "generated" / "0001-a-handwritten-three-1.png"
    run_app(f"reproduce={image}", "folder=reproduced", "accelerator=cpu")
    assert np.array_equal(read_pixels(next((tmp_path / "reproduced").glob("0000-*.png"))), read_pixels(image))
