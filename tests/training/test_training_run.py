"""Complete runs in this process: seeds, workers, accumulation, EMA, resume."""

import json
import re

import pytest
import torch
from conftest import ROOT, read_metric_rows
from safetensors.torch import load_file


def load_adapter(folder):
    return load_file(folder / "adapter" / "pytorch_lora_weights.safetensors")


def assert_tensors_equal(one: dict, other: dict, tolerance: float = 0.0):
    assert one.keys() == other.keys()
    for key in one:
        assert torch.allclose(one[key], other[key], rtol=0, atol=tolerance), key


PLAIN = ("steps=4",)
SAMPLED = ("steps=4", "sample_every=1")
PRETRAINED = ("steps=2", "lr=0.05", "alpha=3", "model.weights=pretrained")
FULL = ("steps=2", "method=sft", "lr=1e-3", "model.weights=pretrained")


@pytest.mark.slow
def test_equal_seeds_give_bit_identical_adapters_and_workers_change_nothing(run, shared_run):
    _, one = shared_run(*PLAIN)
    torch.manual_seed(99)
    _, two = run("steps=4", "workers=2", name="two")
    _, other = run("steps=4", "seed=1", name="other")
    assert_tensors_equal(load_adapter(one), load_adapter(two))
    assert not torch.equal(*(next(iter(load_adapter(f).values())) for f in (one, other)))


@pytest.mark.slow
def test_accumulation_equals_the_larger_batch(run):  # pitfall 12
    overrides = ["steps=3", "schedule=cosine", "optimizer.eps=1e-3"]  # a small eps lets Adam amplify rounding errors
    _, large_batch = run(*overrides, "batch_size=4", name="large_batch")
    _, accumulated = run(*overrides, "batch_size=1", "gradient_accumulation_steps=4", name="accumulated")
    assert_tensors_equal(load_adapter(large_batch), load_adapter(accumulated), 1e-5)
    for a, b in zip(read_metric_rows(large_batch), read_metric_rows(accumulated), strict=True):
        assert float(a["train/loss"]) == pytest.approx(float(b["train/loss"]), abs=1e-5)
        assert a["train/lr_unet"] == b["train/lr_unet"]


def test_sampling_leaves_training_untouched(shared_run):  # pitfall 18
    module, often = shared_run(*SAMPLED)
    _, never = shared_run(*PLAIN)
    assert_tensors_equal(load_adapter(often), load_adapter(never))
    assert len(list((often / "samples").glob("step-*"))) == 5
    assert (
        not hasattr(module.model.scheduler, "num_inference_steps") or module.model.scheduler.num_inference_steps is None
    )


def test_a_resumed_run_is_bit_identical(run):
    _, uninterrupted = run(
        "steps=6",
        "schedule=cosine",
        "ema=0.9",
        "sample_every=2",
        "save_every=3",
        "checkpoints_total_limit=3",
        name="uninterrupted",
    )
    checkpoint = uninterrupted / "checkpoints" / "step-000003.ckpt"
    _, resumed = run(
        "steps=6", "schedule=cosine", "ema=0.9", "sample_every=2", f"resume={checkpoint}", "workers=1", name="resumed"
    )
    assert_tensors_equal(load_adapter(uninterrupted), load_adapter(resumed))
    assert [r["step"] for r in read_metric_rows(resumed)] == ["4", "5", "6"]
    for name in ("step-000004", "step-000006"):
        for image in (uninterrupted / "samples" / name).glob("*.png"):
            assert image.read_bytes() == (resumed / "samples" / name / image.name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("before, after", [((2, 2), (4, 1)), ((4, 1), (2, 2)), ((4, 1), (1, 4)), ((2, 1), (3, 2))])
def test_a_run_resumes_at_its_next_sample_with_another_batch_size_and_accumulation(run, before, after):
    def start(steps: int, sizes: tuple[int, int], name: str, *overrides: str):
        batch = [f"batch_size={sizes[0]}", f"gradient_accumulation_steps={sizes[1]}", "data.per_digit=3"]
        return run(f"steps={steps}", *batch, "optimizer.eps=1e-3", *overrides, name=name)[1]

    first = start(3, before, "first")
    resumed = start(7, after, "resumed", f"resume={first / 'checkpoints' / 'last.ckpt'}")
    rows = read_metric_rows(resumed)
    assert [row["step"] for row in rows] == ["4", "5", "6", "7"]
    if before[0] * before[1] == after[0] * after[1]:
        assert_tensors_equal(load_adapter(start(7, before, "uninterrupted")), load_adapter(resumed), 1e-5)
    checkpoint = torch.load(resumed / "checkpoints" / "last.ckpt", weights_only=True)
    sizes = [(0, before[0] * before[1]), (3, after[0] * after[1])]
    assert checkpoint["step_sizes"] == (sizes if sizes[0][1] != sizes[1][1] else sizes[:1])
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
    assert progress["processed"] == 7 * after[1]


def test_checkpoints_contain_trainable_parameters_only(run):
    module, folder = run("steps=2", "ema=0.9")
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert set(checkpoint["state_dict"]) == {f"model.{n}" for n in module.get_trainable_parameters()}
    assert checkpoint["callbacks"]["ema"]["updates"] == 2


@pytest.mark.slow
def test_validation_loss_falls_and_is_equal_for_equal_weights(run, capsys):
    _, one = run("steps=20", "lr=1e-3", "model.weights=pretrained", "batch_size=8", name="one")
    _, other = run("steps=1", "lr=1e-30", "text_encoder_lr=1e-30", "model.weights=pretrained", "seed=0", name="other")
    first, last = json.loads((one / "run.json").read_text())["validation_loss"]
    assert last < 0.95 * first
    assert json.loads((other / "run.json").read_text())["validation_loss"] == [first, first]
    assert f"{first:.4f} → {last:.4f} at fixed noise on training images" in capsys.readouterr().out


def test_a_run_writes_its_folder(shared_run):
    _, folder = shared_run(*SAMPLED)
    record = json.loads((folder / "run.json").read_text())
    assert record["state"] == "finished" and record["steps"] == 4 and record["seed"] == 0
    assert record["device"].startswith("cpu") and record["versions"]["torch"]
    assert record["trainable"] == {"unet": 66_304, "clip_l": 8_192}
    for name in (
        "config.yaml",
        "metrics.csv",
        "samples.png",
        "adapter/README.md",
        "adapter/samples.png",
        "checkpoints/last.ckpt",
    ):
        assert (folder / name).stat().st_size > 0, name
    assert set(read_metric_rows(folder)[0]) >= {
        "step",
        "train/loss",
        "train/grad_norm",
        "train/lr_unet",
        "train/images_per_second",
    }


def test_the_code_of_the_model_card_runs_in_its_folder_and_gives_the_sampled_image(shared_run, monkeypatch):
    from PIL import Image, ImageChops

    _, folder = shared_run(*PRETRAINED)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "adapter" / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(folder / "adapter")
    exec(code, variables := {})
    with Image.open(folder / "samples" / "step-000002" / "000.png") as sample:
        difference = ImageChops.difference(sample.convert("RGB"), variables["image"])
    assert max(high for _, high in difference.getextrema()) <= 2


@pytest.mark.parametrize("file", ["pytorch_lora_weights.safetensors", "lora-kohya.safetensors"])
def test_the_exported_file_reproduces_the_sampled_image(shared_run, file):  # pitfall 29
    from diffusers import StableDiffusionPipeline
    from PIL import Image

    _, folder = shared_run(*PRETRAINED)
    facts = json.loads((folder / "samples" / "step-000002" / "samples.json").read_text())[0]
    pipeline = StableDiffusionPipeline.from_pretrained(ROOT / "sdft" / "assets" / "tiny-sd")
    pipeline.load_lora_weights(folder / "adapter", weight_name=file)
    generator = torch.Generator().manual_seed(facts["seed"])
    image = pipeline(
        facts["prompt"], num_inference_steps=2, guidance_scale=3.0, height=32, width=32, generator=generator
    ).images[0]
    sampled, base = (Image.open(folder / "samples" / step / facts["file"]) for step in ("step-000002", "step-000000"))
    assert max_pixel_difference(sampled, image) <= 2
    assert max_pixel_difference(sampled, base) > 20


def max_pixel_difference(one, other) -> int:
    """The largest difference of a channel value, 0..255."""
    return max(abs(a - b) for a, b in zip(one.tobytes(), other.tobytes(), strict=True))


def test_training_on_photographs(run, photographs):
    _, folder = run(
        "steps=1",
        "data=folder",
        f"data.path={photographs}",
        "resolution=64",
        "crop=random",
        "flip=true",
        "prompts=[a photo of a cat]",
    )
    assert len(list((folder / "samples" / "step-000001").glob("*.png"))) == 1


@pytest.mark.parametrize("method", ["lora", "sft"])
def test_bf16_trains_and_its_result_opens_in_fp32(run, method):
    module, folder = run("steps=2", "precision=bf16", f"method={method}")
    assert module.model.vae.dtype == torch.float32
    assert module.model.clip_l.get_input_embeddings().weight.dtype == torch.bfloat16
    if method == "sft":
        from diffusers import StableDiffusionPipeline

        frozen = load_file(folder / "pipeline" / "text_encoder" / "model.safetensors")  # not rounded
        assert all(weight.bfloat16().float().ne(weight).any() for name, weight in frozen.items() if "embedding" in name)
        pipeline = StableDiffusionPipeline.from_pretrained(folder / "pipeline")
        assert len(pipeline("a handwritten one", num_inference_steps=1, height=32, width=32).images) == 1


@pytest.mark.slow
def test_dropout_changes_training_and_depends_on_the_seed_only(run, shared_run):
    adapters = {"plain": load_adapter(shared_run(*PLAIN)[1])}
    for name, overrides in {
        "one": ["method.dropout=0.5"],
        "two": ["method.dropout=0.5", "sample_every=1"],
    }.items():
        torch.manual_seed(len(overrides))
        adapters[name] = load_adapter(run("steps=4", *overrides, name=name)[1])
    assert_tensors_equal(adapters["one"], adapters["two"])
    assert any(not torch.equal(adapters["one"][key], adapters["plain"][key]) for key in adapters["one"])


def test_resuming_a_finished_run_or_another_method_is_refused(run, shared_run):
    _, folder = shared_run(*PLAIN)
    with pytest.raises(ValueError, match=r"resume=.*: already at step 4 of 4"):
        run("steps=4", f"resume={folder}", name="again")
    with pytest.raises(ValueError, match="resume: the method's alpha was 8 and is 4"):
        run("steps=5", f"resume={folder}", "rank=4", name="other")


def test_exported_files_contain_no_local_paths(shared_run):
    for overrides, result in ((PRETRAINED, "adapter"), (FULL, "pipeline")):
        for file in (shared_run(*overrides)[1] / result).rglob("*"):
            assert not file.is_file() or str(ROOT).encode() not in file.read_bytes(), file


def test_full_fine_tuning_writes_a_pipeline_that_opens(shared_run):
    from diffusers import StableDiffusionPipeline

    module, folder = shared_run(*FULL)
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "pipeline", safety_checker=None)
    assert torch.equal(pipeline.unet.conv_in.weight, module.model.unet.conv_in.weight)


def test_an_adapter_that_gets_no_gradient_stops_the_run(run, monkeypatch):  # pitfall 3
    from sdft.models.stable_diffusion import StableDiffusion

    encode = StableDiffusion.encode_text
    detached = lambda model, ids: {name: tensor.detach() for name, tensor in encode(model, ids).items()}  # noqa: E731
    monkeypatch.setattr(StableDiffusion, "encode_text", detached)
    with pytest.raises(ValueError, match=r"clip_l\..* gradient"):
        run("steps=2")


@pytest.mark.slow
def test_buckets_prompt_chunks_and_resolutions_resume_bit_identically(run, photographs):
    overrides = [
        "data=folder",
        f"data.path={photographs}",
        "resolution=32",
        "extra_resolutions=[64]",
        "prompt_chunks=2",
        "batch_size=2",
    ]
    overrides += ["prompts=[a photo of a cat]", "steps=10", "flip=true", "max_upscale=0"]
    _, uninterrupted = run(*overrides, "save_every=5", "checkpoints_total_limit=2", name="uninterrupted")
    checkpoint = uninterrupted / "checkpoints" / "step-000005.ckpt"
    _, resumed = run(*overrides, f"resume={checkpoint}", "workers=1", name="resumed")
    assert_tensors_equal(load_adapter(uninterrupted), load_adapter(resumed))
    facts = json.loads((uninterrupted / "data.json").read_text())
    assert len(facts["buckets"]) >= 4 and sum(facts["buckets"].values()) == 12
    assert (uninterrupted / "data.png").stat().st_size > 1000
