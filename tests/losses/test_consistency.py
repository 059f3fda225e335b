"""Latent consistency distillation: its formulas against diffusers, the teacher, and the saved files."""

import json
import re

import pytest
import torch
from conftest import ROOT
from diffusers import DDIMScheduler, LCMScheduler, StableDiffusionPipeline
from hydra.errors import InstantiationException
from PIL import Image
from safetensors import safe_open
from test_module import build_batch, build_module
from test_training_run import assert_tensors_equal, load_adapter, max_pixel_difference

from sdft.lora.scaling import disable_adapters
from sdft.losses.consistency import LatentConsistencyLoss, predict_clean_latents
from sdft.methods.lcm_lora import LCMLoRA
from sdft.models.conditioning import Conditioning
from sdft.training.module import DiffusionModule

KINDS = ["epsilon", "v_prediction"]
SMALL_RUN = ["data.per_digit=2", "data.digits=[0,1]", "cache=ram", "rank=2", "prompts=[a handwritten three in red ink]"]


def build_loss(**options) -> LatentConsistencyLoss:
    """The loss with the teacher of LCM-LoRA."""
    loss = LatentConsistencyLoss(**options)
    loss.teacher = LCMLoRA.predict_as_teacher
    return loss


def build_lcm_module(model) -> DiffusionModule:
    """A module with a nonzero adapter."""
    module = build_module(model, LCMLoRA(4, 4, unet_targets=["to_q", "conv1"]), seed=1)
    module.objective = build_loss()
    for name, weight in module.get_trainable_parameters().items():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return module


def make_batch(model, size=2) -> dict:
    return build_batch(model, size) | {
        "guidance": torch.linspace(0, 1, size),
        "timestep": torch.linspace(150, 990, size).long(),
    }


def test_the_solver_uses_the_timesteps_of_the_lcm_scheduler(tiny):
    model = tiny()
    late, early = LatentConsistencyLoss().get_solver_timesteps(model, torch.arange(1000))
    assert late.unique().tolist() == list(range(19, 1000, 20)) and early.unique().tolist() == [0, *range(19, 980, 20)]
    assert (late >= torch.arange(1000)).all() and (early <= torch.arange(1000)).all()
    scheduler = LCMScheduler.from_config(model.scheduler.config)
    scheduler.set_timesteps(4)
    assert set(scheduler.timesteps.tolist()) <= set(late.tolist())
    odd, _ = LatentConsistencyLoss(solver_steps=30).get_solver_timesteps(model, torch.arange(1000))
    assert len(odd.unique()) == 30 and odd.max() < 1000


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_step_is_a_ddim_step_with_guidance(tiny, kind):
    model = tiny(prediction_type=kind)
    model.cache_unconditional_text()
    context = model.condition_prompts(["a handwritten two", "a handwritten five"])
    noisy, late, early = torch.randn(2, 4, 8, 8), torch.tensor([999, 499]), torch.tensor([979, 479])
    result = build_loss(guidance_range=[2.0, 6.0]).take_teacher_step(
        model, noisy, late, early, context, torch.tensor([0.25, 1.0])
    )
    reference = DDIMScheduler.from_config(model.scheduler.config, clip_sample=False, timestep_spacing="trailing")
    reference.set_timesteps(50)
    with torch.no_grad():
        for row, scale in enumerate((3.0, 6.0)):
            sample, timestep = noisy[row : row + 1], late[row : row + 1]
            contexts = (context.text["context"][row : row + 1], model.unconditional_context)
            conditional, unconditional = (
                model.predict(sample, timestep, Conditioning({"context": c})) for c in contexts
            )
            guided = unconditional + scale * (conditional - unconditional)
            expected = reference.step(guided, int(timestep), sample).prev_sample
            assert torch.allclose(result[row : row + 1], expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_student_prediction_matches_the_lcm_scheduler(tiny, kind):
    model = tiny(prediction_type=kind)
    output, noisy = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    model.predict = lambda *_: output
    scheduler = LCMScheduler.from_config(model.scheduler.config)
    scheduler.set_timesteps(4)
    for timestep in scheduler.timesteps:
        expected = scheduler.step(output, int(timestep), noisy, generator=torch.Generator()).denoised
        assert torch.allclose(predict_clean_latents(model, noisy, timestep[None], None), expected, atol=1e-4)
    assert torch.equal(predict_clean_latents(model, noisy, torch.tensor([0]), None), noisy)  # boundary condition


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_model_of_a_single_image_has_no_loss(tiny, kind):
    """All paths end at that image, for every guidance scale."""
    model, image = tiny(prediction_type=kind), torch.randn(1, 4, 8, 8)
    model.cache_unconditional_text()

    def predict(noisy, timesteps, context, error=0.0):
        alpha = model.noise_process.alphas_cumprod[timesteps][:, None, None, None]
        noise = (noisy - alpha.sqrt() * image) / (1 - alpha).sqrt() + error * noisy
        return noise if kind == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * image

    context, draws = model.condition_prompts(["", ""]), make_batch(model)
    model.predict = predict
    assert build_loss()(model, image.expand(2, -1, -1, -1), context, draws).max() < 1e-4
    model.predict = lambda *inputs: predict(*inputs, error=0.3)
    assert build_loss()(model, image.expand(2, -1, -1, -1), context, draws).max() > 1e-3


def test_the_teacher_is_the_model_without_its_adapter(tiny):
    base, model = tiny(), build_lcm_module(tiny()).model
    base.cache_unconditional_text()
    noisy, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([999, 499])
    context = base.condition_prompts(["", ""])
    trainable = [p.requires_grad for p in model.parameters()]
    args = (noisy, timesteps, timesteps - 20, context, torch.ones(2))
    assert torch.equal(*(build_loss().take_teacher_step(m, *args) for m in (model, base)))
    with torch.no_grad():
        args = (noisy, timesteps, context)
        expected = predict_clean_latents(base, *args)
        assert not torch.allclose(predict_clean_latents(model, *args), expected, atol=1e-2)
        with disable_adapters(model.unet):
            assert torch.equal(predict_clean_latents(model, *args), expected)
    assert [p.requires_grad for p in model.parameters()] == trainable and any(trainable)


def test_losses_are_independent_of_the_batch_and_respect_masks(tiny):
    module = build_lcm_module(tiny())
    tensors = make_batch(module.model, 4)
    losses = torch.cat([module.compute_losses({k: v[i : i + 1] for k, v in tensors.items()}) for i in range(4)])
    assert torch.allclose(module.compute_losses(tensors), losses, atol=1e-5) and losses.min() > 0
    top_mask = torch.cat([torch.ones(4, 1, 4, 8), torch.zeros(4, 1, 4, 8)], 2)
    top, bottom = (module.compute_losses(tensors | {"mask": mask}) for mask in (top_mask, 1 - top_mask))
    assert torch.allclose((top + bottom) / 2, losses, atol=1e-5) and not torch.allclose(top, losses, atol=1e-3)


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_every_adapter_layer_has_a_gradient_with_and_without_checkpointing(tiny, compute_dtype):
    gradients = []
    for checkpointing in (False, True):
        module = build_module(tiny(), LCMLoRA(4, 4), checkpointing=checkpointing, compute_dtype=compute_dtype)
        module.objective = build_loss()
        module.training_step(make_batch(module.model), 0)["loss"].backward()
        module.on_after_backward()
        gradients.append({name: p.grad for name, p in module.get_trainable_parameters().items()})
    for name, gradient in gradients[0].items():
        assert gradient.any() or "lora_A" in name, name  # zero while B is zero
        assert torch.allclose(gradient, gradients[1][name], atol=1e-5 if compute_dtype is torch.float32 else 1e-2), name


@pytest.mark.slow
def test_a_run_samples_in_four_steps_and_its_files_record_it(run):
    overrides = ["method=lcm_lora", *SMALL_RUN, "steps=3", "lr=0.01", "sampling.steps=4", "model.weights=pretrained"]
    module, folder = run(*overrides)
    assert {name.split(".")[0] for name in module.get_trainable_parameters()} == {"unet"}
    for file in ("pytorch_lora_weights.safetensors", "lcm_lora-kohya.safetensors"):
        with safe_open(folder / "adapter" / file, "pt") as opened_file:
            metadata = opened_file.metadata()
        assert json.loads(metadata["sampling"]) == {"scheduler": "lcm", "steps": 4, "guidance_scale": 1.0}
        assert "LCM scheduler, 4 steps" in metadata["modelspec.usage_hint"]
    assert "LCMScheduler.from_config" in (folder / "adapter" / "README.md").read_text()
    pipeline = StableDiffusionPipeline.from_pretrained(ROOT / "sdft" / "assets" / "tiny-sd")
    pipeline.load_lora_weights(folder / "adapter", weight_name="pytorch_lora_weights.safetensors")
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    sample = json.loads((folder / "samples" / "step-000003" / "samples.json").read_text())[0]
    options = {"num_inference_steps": 4, "guidance_scale": 1.0, "height": 32, "width": 32}
    image = pipeline(sample["prompt"], generator=torch.Generator().manual_seed(sample["seed"]), **options).images[0]
    sampled, base = (Image.open(folder / "samples" / step / sample["file"]) for step in ("step-000003", "step-000000"))
    assert max_pixel_difference(sampled, image) <= 2 and max_pixel_difference(sampled, base) > 10


@pytest.mark.slow
def test_accumulated_micro_batches_equal_one_batch(run):
    overrides = [
        "method=lcm_lora",
        *SMALL_RUN,
        "steps=2",
        "lr=1e-3",
        "optimizer.eps=1e-3",
        "smooth_diffusion_weight=0.5",
    ]
    (single, single_folder), (accumulated, accumulated_folder) = (
        run(*overrides, f"batch_size={size}", f"gradient_accumulation_steps={4 // size}", name=str(size))
        for size in (4, 2)
    )
    assert_tensors_equal(load_adapter(single_folder), load_adapter(accumulated_folder), 1e-5)
    assert single.smoothness.state_dict() == pytest.approx(accumulated.smoothness.state_dict(), rel=1e-4)


BAD = {
    "guidance_range=[0.5,3]": r"guidance_range=\[0.5, 3\]: ",
    "guidance_range=[5,3]": r"guidance_range=\[5, 3\]: ",
    "solver_steps=1": "solver_steps=1: .*2 to 1000",
    "objective.huber_c=0": "objective.huber_c=0.*: ",
    "unmasked_weight=2": "unmasked_weight=2: ",
    "+method.text_encoder=true": "method.text_encoder=true: ",
    "method.init_lora_weights=pissa": "method.init_lora_weights=pissa: ",
    "rank=0": "rank=0: ",
    "smooth_diffusion_weight=-1": "smooth_diffusion_weight=-1: ",
    "sampling.steps=60": "sampling.steps=60: .*50.*lcm",
    "sampling.scheduler=magic": "sampling.scheduler=magic: .*ddim",
    "objective=denoising": "method=lcm_lora: .*objective=consistency",
    "caption_template=' '": "data: .*caption",
    "prior=class_images instance_prompt=x class_prompt=y": "prior=class_images: .*prior=none",
}


@pytest.mark.parametrize("overrides", BAD)
def test_invalid_options_raise_one_line(run, overrides):
    with pytest.raises((ValueError, InstantiationException)) as error:
        run("method=lcm_lora", *SMALL_RUN, "steps=1", *(overrides.split() if "prior" in overrides else [overrides]))
    line = str(error.value if isinstance(error.value, ValueError) else error.value.__cause__)
    assert re.match(BAD[overrides], line) and "\n" not in line


def test_unsupported_methods_and_strategies_raise(run):
    with pytest.raises(ValueError, match="objective=consistency: .*method=sft.* method=lcm_lora"):
        run("method=sft", "objective=consistency", "steps=1")
    with pytest.raises(ValueError, match="smooth_diffusion_weight=1: strategy=fsdp .*strategy=ddp"):
        run("method=sft", "smooth_diffusion_weight=1", "strategy=fsdp", "steps=1", name="other")


def test_add_noise_matches_diffusers(tiny):
    model, latents, noise = tiny(), torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    timesteps = torch.tensor([19, 999])
    expected = DDIMScheduler.from_config(model.scheduler.config).add_noise(latents, noise, timesteps)
    assert torch.allclose(model.noise_process.add_noise(latents, noise, timesteps), expected, atol=1e-6)
