"""Pictures with all that they were made with inside them, in grids, and made again to the bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, compose_config
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
    """A LoRA that changes much, and in magnitudes too, as a DoRA does."""
    folder, model, method = tmp_path_factory.mktemp("adapter"), tiny(), LoRA(rank=2, alpha=2, dora=True)
    method.prepare(model)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    method.save(model, folder, "one")
    return folder / "pytorch_lora_weights.safetensors"


@pytest.fixture
def made(tmp_path, monkeypatch, capsys):
    """A function that generates into `folder=` with real words; returns the pictures, by number, and what was printed."""
    monkeypatch.chdir(tmp_path)

    def make(*words: str, folder: str = "made"):
        cfg = compose_config(*words, f"folder={folder}", config="generate")
        with open_dict(cfg):
            cfg.pop("hydra")
        generate(cfg, {word.split("=")[0] for word in (*words, "folder=")})
        return sorted(Path(folder).glob("0*.png")), capsys.readouterr().out

    return make


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file), np.int16)


def told(file: Path) -> dict:
    return json.loads(Image.open(file).info["sdft"])


def rewritten(file: Path, **changes) -> Path:
    """The picture with other words in it, as a stranger could write them."""
    texts = PngImagePlugin.PngInfo()
    texts.add_text("sdft", json.dumps(told(file) | changes))
    Image.open(file).save("stranger.png", pnginfo=texts)
    return Path("stranger.png")


def test_pictures_are_those_of_sampling_whatever_the_batch(made, tiny):
    files, out = made(*QUICK, "images=2", "batch_size=3")
    assert [told(file)["seed"] for file in files] == [0, 1, 0, 1] and "draw     4 pictures in made/" in out
    expected = Sampling(steps=2, guidance_scale=3.0, images=2)(tiny(), ["a cat", "two dogs"], 32)
    for file, picture in zip(files, expected, strict=True):
        assert np.abs(pixels(file) - np.asarray(picture, np.int16)).max() <= 2
    assert (Path("made") / "grid.png").is_file()


def test_a_picture_is_made_again_to_the_bit_wherever_it_stood_in_its_batch(made, adapter):
    words = [*QUICK, "images=3", "batch_size=4", "scheduler=euler_a", "negative_prompt='blue, grün'", "height=40"]
    files, _ = made(*words, f"adapters=[{adapter}]", "weights=[0.7]", "strength=0.9", "seed=5")
    for file in (files[2], files[5]):  # in batches of four and of two
        (again,), out = made(
            f"reproduce={file}", f"adapters=[{adapter}]", "accelerator=cpu", folder=f"again {file.stem}"
        )
        assert np.array_equal(pixels(again), pixels(file))
        assert told(again) == told(file) and f"same     {file} to the bit" in out
    assert told(files[5])["batch"] == [2, 1] and Image.open(files[5]).size == (32, 40)


def test_words_beside_a_picture_win_and_the_rest_is_the_pictures(made, adapter):
    (file, _), _ = made(*QUICK, f"adapters=[{adapter}]", "seed=3")
    files, out = made(
        f"reproduce={file}", f"adapters=[{adapter}]", "x.strength=[0,1]", "steps=1", "accelerator=cpu", folder="other"
    )
    facts = [told(one) for one in files]
    assert [f["strength"] for f in facts] == [0, 1] and {f["steps"] for f in facts} == {1} and "same" not in out
    assert {f["seed"] for f in facts} == {3} and {f["prompt"] for f in facts} == {"a cat"}
    sizes = made(f"reproduce={file}", "adapters=[]", "model=tiny", "model.weights=random", "height=48", folder="sizes")[
        0
    ]
    assert Image.open(sizes[0]).size == (32, 48)


def test_strength_zero_is_the_base_to_the_bit_even_of_a_dora(made, adapter):
    base = made(*QUICK, folder="base")[0]
    files = made(*QUICK, f"adapters=[{adapter}]", "x.strength=[0,0.5,1]", folder="grid")[0]
    by = {(told(file)["prompt"], told(file)["strength"]): pixels(file) for file in files}
    assert len(by) == 6
    for file in base:
        prompt = told(file)["prompt"]
        assert np.array_equal(by[prompt, 0], pixels(file))
        assert len({by[prompt, strength].tobytes() for strength in (0, 0.5, 1)}) == 3


def test_every_cell_has_the_same_seed_and_differs_in_its_axes_alone(made, adapter):
    words = ["x.scheduler=[null,ddim,euler_a]", "y.weights=[[1,0],[0.5,-1]]", f"adapters=[{adapter},{adapter}]"]
    facts = [told(file) for file in made(*TINY, "prompts=[a cat]", "steps=2", *words)[0]]
    rows = [(f["scheduler"], [one["weight"] for one in f["adapters"]]) for f in facts]
    assert sorted(rows, key=str) == sorted(
        [(s, w) for s in (None, "ddim", "euler_a") for w in ([1, 0], [0.5, -1])], key=str
    )
    own = ("scheduler", "adapters", "sampler", "batch")
    assert len({json.dumps({k: v for k, v in f.items() if k not in own}) for f in facts}) == 1


RUN = ("steps=2", "save_every=1", "checkpoints_total_limit=3", "lr=0.05", "data.per_digit=1", "sample_every=0")
ONE = ("prompts=[a cat]", "steps=1", "accelerator=cpu")


def test_a_run_brings_its_words_and_its_checkpoints(shared, made):
    run = shared(*RUN, "rank=2")[1]
    facts = json.loads((run / "samples" / "step-000002" / "samples.json").read_text())
    files, _ = made(f"run={run}", "accelerator=cpu")
    assert [told(file)["prompt"] for file in files] == [fact["prompt"] for fact in facts]
    for file, fact in zip(files, facts, strict=True):  # the same picture everywhere
        assert np.abs(pixels(file) - pixels(run / "samples" / "step-000002" / fact["file"])).max() <= 2
    of_steps, _ = made(f"run={run}", "x.checkpoint=[0,1,2,result]", *ONE, folder="steps")
    zero, one, two, last = map(pixels, of_steps)
    assert np.abs(two - last).max() <= 2 < np.abs(one - two).max() and not np.array_equal(zero, one)
    (again,), out = made(f"reproduce={of_steps[1]}", f"run={run}", folder="again")
    assert told(again)["checkpoint"] == "1" and "to the bit" in out
    with pytest.raises(ValueError, match=r"checkpoint=7: choose a step, best, or result; .* has 1, 2"):
        made(f"run={run}", "checkpoint=7", *ONE)


@pytest.mark.slow
def test_runs_stand_beside_each_other_by_folder_or_by_rank(shared, made):
    runs = [shared(*RUN, f"rank={rank}")[1] for rank in (2, 3)]
    alone, _ = made(f"run={runs[0]}", *ONE, folder="alone")
    beside, _ = made(f"x.run=[{runs[0]},{runs[1]}]", *ONE, folder="beside")
    assert np.array_equal(pixels(beside[0]), pixels(alone[0]))
    assert not np.array_equal(pixels(beside[1]), pixels(alone[0]))
    ranks, _ = made(f"run={runs[0].parent}", "x.rank=[3,2]", *ONE, folder="ranks")
    assert np.array_equal(pixels(ranks[1]), pixels(alone[0]))
    with pytest.raises(ValueError, match=r"x.rank=4: no runs of this rank in .*there are 2, 3"):
        made(f"run={runs[0].parent}", "x.rank=[4]", *ONE)


@pytest.mark.slow
def test_a_result_without_strength_is_all_or_nothing(shared, made):
    _, run = shared("steps=1", "method=sft", "lr=0.01", "data.per_digit=1")
    quick = [f"run={run}", "prompts=[a cat]", "steps=1", "accelerator=cpu"]
    base, tuned = made(*quick, "x.strength=[0,1]")[0]
    assert not np.array_equal(pixels(base), pixels(tuned))
    assert "to the bit" in made(f"reproduce={tuned}", f"run={run}", folder="again")[1]
    with pytest.raises(ValueError, match="strength=0.5: .*pipeline has none but 0 and 1"):
        made(*quick, "strength=0.5")


def test_what_does_not_fit_is_one_line(made, adapter, tmp_path):
    told = load_file(adapter)
    save_file({key: torch.randn(*weight.shape[:-1], 7) for key, weight in told.items()}, tmp_path / "wide.safetensors")
    save_file({f"unet.elsewhere.{n}.lora_A.weight": torch.ones(2, 2) for n in "ab"}, tmp_path / "other.safetensors")
    refused = {
        ("adapters=[wide.safetensors]",): "adapters=wide.safetensors: does not fit sdft/assets/tiny-sd",
        ("adapters=[other.safetensors]",): "adapters=other.safetensors: unet.elsewhere.a and 1 more fits no layer",
        ("adapters=[nowhere.safetensors]",): "adapters=nowhere.safetensors: no such LoRA file",
        (f"adapters=[{adapter}]", "weights=[1,2]"): r"weights=\[1, 2\]: 2 for 1 adapters",
        ("weights=[1]",): r"weights=\[1\]: 1 for 0 adapters",
        ("width=30",): "width=30: choose a multiple of 8, such as 32",
        ("height=9000",): "height=9000: choose 8 to 8192",
        ("x.scheduler=[ddim,nope]",): "scheduler=nope: choose one of ddim, ddpm",
        ("x.steps=[1]", "x.seed=[1]"): "an axis is of one option",
        ("x.steps=[1,two]",): "x.steps=two: give a list of whole numbers",
        ("x.steps=[0]",): "^steps=0: choose 1 or more",
        ("strength=0.5",): "strength=0.5: a base without adapters has none",
        ("checkpoint=5",): "checkpoint=5: is one of a run",
    }
    for words, line in refused.items():
        with pytest.raises(ValueError, match=line) as error:
            made(*QUICK, *words)
        assert "\n" not in str(error.value) and len(str(error.value)) < 500
    with pytest.raises(ValueError, match=r"prompts=null: give some"):
        made(*TINY)
    assert not Path("made").exists()


def test_an_adapter_that_changed_or_went_is_named(made, adapter):
    file = Path("mine.safetensors")
    file.write_bytes(adapter.read_bytes())
    picture = made(*QUICK, f"adapters=[{file}]")[0][0]
    save_file({key: weight * 2 for key, weight in load_file(file).items()}, file, metadata=header(adapter))
    with pytest.raises(ValueError, match=r"its adapter mine.safetensors has changed \(SHA-256 .* then, .* now\)"):
        made(f"reproduce={picture}", folder="again")
    assert made(f"reproduce={picture}", f"adapters=[{file}]", folder="again")[0]
    file.unlink()
    with pytest.raises(ValueError, match=r"its adapter mine.safetensors \(SHA-256 .*\) is not here; give adapters="):
        made(f"reproduce={picture}", folder="again")


def header(file: Path) -> dict:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return opened.metadata()


def test_a_model_that_is_another_now_is_named(made):
    picture = made(*QUICK)[0][0]
    stranger = rewritten(picture, model=told(picture)["model"] | {"weights": "pretrained"})
    with pytest.raises(ValueError, match="the weights of sdft/assets/tiny-sd are others now"):
        made(f"reproduce={stranger}", folder="again")


def test_a_strangers_picture_builds_and_fetches_nothing(made):
    picture = made(*QUICK)[0][0]
    model = told(picture)["model"]
    for changes, line in {
        "elsewhere": ({"model": model | {"name": "evil/repo"}}, "its model evil/repo is none of conf/model/"),
        "revision": (
            {"model": model | {"name": "stable-diffusion-v1-5/stable-diffusion-v1-5", "revision": "refs/pr/1"}},
            "at revision refs/pr/1 is none of",
        ),
        "target": ({"model": model | {"_target_": "os.system"}}, "not complete, or more"),
        "path": ({"model": model | {"architecture": "../../x"}}, "its model.architecture"),
        "run": ({"run": "/etc", "adapters": []}, "its run /etc is not here"),
    }.values():
        with pytest.raises(ValueError, match=line):
            made(f"reproduce={rewritten(picture, **changes)}", folder="again")


def test_no_folder_of_this_machine_is_in_a_picture(made, adapter, monkeypatch):
    file = made(*QUICK, f"adapters=[{adapter}]")[0][0]
    assert (
        str(adapter.parent.parent).encode() not in file.read_bytes() and b'"file": "pytorch_lora_w' in file.read_bytes()
    )
    monkeypatch.setenv("HOME", str(adapter.parent))
    file = made(*QUICK, f"adapters=[{adapter}]")[0][0]
    assert told(file)["adapters"][0]["file"] == "~/pytorch_lora_weights.safetensors"
    assert "to the bit" in made(f"reproduce={file}", folder="again")[1]


@pytest.mark.slow
def test_a_new_process_makes_the_same(tmp_path):
    def program(*words: str) -> str:
        here = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "sdft", "generate", *words]
        return subprocess.run(
            command, cwd=tmp_path, env=os.environ | here, capture_output=True, text=True, check=True
        ).stdout

    program("model=tiny", "prompts=[a handwritten three]", "images=3", "folder=made", "accelerator=cpu")
    assert "to the bit" in program("reproduce=made/0001-a-handwritten-three-1.png", "folder=again", "accelerator=cpu")
