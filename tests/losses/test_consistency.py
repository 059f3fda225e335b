"""Latent consistency distillation: its formulas against diffusers', whose weights teach, and the files that it leaves."""

import json
import re

import pytest
import torch
from conftest import ROOT
from diffusers import DDIMScheduler, LCMScheduler, StableDiffusionPipeline
from hydra.errors import InstantiationException
from PIL import Image
from safetensors import safe_open
from test_module import batch, build
from test_training_run import adapter, assert_same, difference

from sdft.losses.consistency import LatentConsistencyLoss, disable_adapter, predict_clean_latents
from sdft.losses.diffusion import add_noise
from sdft.methods.lcm_lora import LCMLoRA
from sdft.training.module import DiffusionModule

KINDS = ["epsilon", "v_prediction"]
FEW = ["data.per_digit=2", "data.digits=[0,1]", "cache=ram", "rank=2", "prompts=[a handwritten three in red ink]"]


def ready(model) -> DiffusionModule:
    """With an adapter that already says something."""
    plain = build(model, LCMLoRA(4, 4, unet_targets=["to_q", "conv1"]), seed=1)
    plain.objective = LatentConsistencyLoss()
    for name, weight in plain.get_trainable_parameters().items():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return plain


def given(model, size=2) -> dict:
    return batch(model, size) | {
        "guidance": torch.linspace(0, 1, size),
        "timestep": torch.linspace(150, 990, size).long(),
    }


def test_the_solver_takes_the_timesteps_that_the_lcm_scheduler_visits(tiny):
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
def test_the_teachers_step_is_that_of_ddim_with_guidance(tiny, kind):
    model = tiny(prediction_type=kind)
    model.cache_unconditional_embedding()
    context = model.condition(model.tokenize(["a handwritten two", "a handwritten five"]))
    noisy, late, early = torch.randn(2, 4, 8, 8), torch.tensor([999, 499]), torch.tensor([979, 479])
    found = LatentConsistencyLoss([2.0, 6.0]).take_teacher_step(
        model, noisy, late, early, context, torch.tensor([0.25, 1.0])
    )
    reference = DDIMScheduler.from_config(model.scheduler.config, clip_sample=False, timestep_spacing="trailing")
    reference.set_timesteps(50)
    with torch.no_grad():
        for row, scale in enumerate((3.0, 6.0)):
            one, at = noisy[row : row + 1], late[row : row + 1]
            told, untold = (model.predict(one, at, c) for c in (context[row : row + 1], model.unconditional_embedding))
            known = reference.step(untold + scale * (told - untold), int(at), one).prev_sample
            assert torch.allclose(found[row : row + 1], known, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_students_image_is_the_lcm_schedulers(tiny, kind):
    model = tiny(prediction_type=kind)
    output, noisy = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    model.predict = lambda *_: output
    scheduler = LCMScheduler.from_config(model.scheduler.config)
    scheduler.set_timesteps(4)
    for timestep in scheduler.timesteps:
        known = scheduler.step(output, int(timestep), noisy, generator=torch.Generator()).denoised
        assert torch.allclose(predict_clean_latents(model, noisy, timestep[None], None), known, atol=1e-4)
    assert torch.equal(predict_clean_latents(model, noisy, torch.tensor([0]), None), noisy)  # the boundary


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_knows_the_only_image_has_no_loss(tiny, kind):
    """All paths then end there, whichever guidance."""
    model, only = tiny(prediction_type=kind), torch.randn(1, 4, 8, 8)
    model.cache_unconditional_embedding()

    def predict(noisy, timesteps, context, wrong=0.0):
        alpha = model.alphas_cumprod[timesteps][:, None, None, None]
        noise = (noisy - alpha.sqrt() * only) / (1 - alpha).sqrt() + wrong * noisy
        return noise if kind == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * only

    context, draws = model.unconditional_embedding.expand(2, -1, -1), given(model)
    model.predict = predict
    assert LatentConsistencyLoss()(model, only.expand(2, -1, -1, -1), context, draws).max() < 1e-4
    model.predict = lambda *inputs: predict(*inputs, wrong=0.3)
    assert LatentConsistencyLoss()(model, only.expand(2, -1, -1, -1), context, draws).max() > 1e-3


def test_the_teacher_is_the_model_without_its_adapter(tiny):
    base, model = tiny(), ready(tiny()).model
    base.cache_unconditional_embedding()
    noisy, at, context = (
        torch.randn(2, 4, 8, 8),
        torch.tensor([999, 499]),
        base.unconditional_embedding.expand(2, -1, -1),
    )
    rest = (at - 20, context, torch.ones(2))
    learning = [p.requires_grad for p in model.parameters()]
    taught, known = (LatentConsistencyLoss().take_teacher_step(m, noisy, at, *rest) for m in (model, base))
    assert torch.equal(taught, known)
    with torch.no_grad():
        assert not torch.allclose(
            predict_clean_latents(model, noisy, at, context), predict_clean_latents(base, noisy, at, context), atol=1e-2
        )
        with disable_adapter(model.unet):
            assert torch.equal(
                predict_clean_latents(model, noisy, at, context), predict_clean_latents(base, noisy, at, context)
            )
    assert [p.requires_grad for p in model.parameters()] == learning and any(learning)


def test_losses_do_not_depend_on_the_batch_they_are_in_and_masks_choose_where(tiny):
    module = ready(tiny())
    whole = given(module.model, 4)
    alone = torch.cat([module.compute_losses({k: v[i : i + 1] for k, v in whole.items()}) for i in range(4)])
    assert torch.allclose(module.compute_losses(whole), alone, atol=1e-5) and alone.min() > 0
    top = whole | {"mask": torch.cat([torch.ones(4, 1, 4, 8), torch.zeros(4, 1, 4, 8)], 2)}
    low = whole | {"mask": 1 - top["mask"]}
    halves = (module.compute_losses(top) + module.compute_losses(low)) / 2
    assert torch.allclose(halves, alone, atol=1e-5) and not torch.allclose(module.compute_losses(top), alone, atol=1e-3)


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_every_layer_of_the_adapter_gets_a_gradient_with_checkpointing_or_without(tiny, compute_dtype):
    gradients = []
    for checkpointing in (False, True):
        module = build(tiny(), LCMLoRA(4, 4), checkpointing=checkpointing, compute_dtype=compute_dtype)
        module.objective = LatentConsistencyLoss()
        with torch.autocast("cpu", compute_dtype, enabled=compute_dtype is not torch.float32):
            loss = module.training_step(given(module.model), 0)["loss"]
        loss.backward()
        gradients.append({name: p.grad for name, p in module.get_trainable_parameters().items()})
    for name, gradient in gradients[0].items():
        assert gradient.any() or "lora_A" in name, name  # whose B is zero yet
        assert torch.allclose(gradient, gradients[1][name], atol=1e-5 if compute_dtype is torch.float32 else 1e-2), name


def test_a_run_draws_in_four_steps_and_its_files_say_so(run):
    words = ["method=lcm_lora", *FEW, "steps=3", "lr=0.01", "sampling.steps=4", "model.weights=pretrained"]
    module, folder = run(*words)
    assert {name.split(".")[0] for name in module.get_trainable_parameters()} == {"unet"}
    for file in ("pytorch_lora_weights.safetensors", "lcm_lora-kohya.safetensors"):
        with safe_open(folder / "adapter" / file, "pt") as opened:
            told = opened.metadata()
        assert json.loads(told["sampling"]) == {"scheduler": "lcm", "steps": 4, "guidance_scale": 1.0}
        assert "LCM scheduler, 4 steps" in told["modelspec.usage_hint"]
    assert "LCMScheduler.from_config" in (folder / "adapter" / "README.md").read_text()
    plain = StableDiffusionPipeline.from_pretrained(ROOT / "sdft" / "assets" / "tiny-sd")
    plain.load_lora_weights(folder / "adapter", weight_name="pytorch_lora_weights.safetensors")
    plain.scheduler = LCMScheduler.from_config(plain.scheduler.config, clip_sample=False)
    facts = json.loads((folder / "samples" / "step-000003" / "samples.json").read_text())[0]
    about = {"num_inference_steps": 4, "guidance_scale": 1.0, "height": 32, "width": 32}
    made = plain(facts["prompt"], generator=torch.Generator().manual_seed(facts["seed"]), **about).images[0]
    sampled, base = (Image.open(folder / "samples" / step / facts["file"]) for step in ("step-000003", "step-000000"))
    assert difference(sampled, made) <= 2 and difference(sampled, base) > 10


def test_accumulated_micro_batches_are_one_batch(run):
    words = ["method=lcm_lora", *FEW, "steps=2", "lr=1e-3", "optimizer.eps=1e-3", "smooth_diffusion_weight=0.5"]
    one, other = (
        run(*words, f"batch_size={size}", f"gradient_accumulation_steps={4 // size}", name=str(size)) for size in (4, 2)
    )
    assert_same(adapter(one[1]), adapter(other[1]), 1e-5)
    assert one[0].smoothness.state() == pytest.approx(other[0].smoothness.state(), rel=1e-4)


BAD = {
    "guidance_range=[0.5,3]": r"guidance_range=\[0.5, 3\]: choose two scales of 1 or more",
    "guidance_range=[5,3]": r"guidance_range=\[5, 3\]: choose two scales",
    "solver_steps=1": "solver_steps=1: choose from 2 to 1000",
    "objective.huber_c=0": "objective.huber_c=0.*: choose more than 0",
    "unmasked_weight=2": "unmasked_weight=2: choose from 0",
    "+method.text_encoder=true": "method.text_encoder=true: only the UNet learns",
    "method.init_lora_weights=pissa": "method.init_lora_weights=pissa: changes the weights below the adapter",
    "rank=0": "rank=0: choose 1 or more",
    "smooth_diffusion_weight=-1": "smooth_diffusion_weight=-1: choose 0 ",
    "sampling.steps=60": "sampling.steps=60: sampling.scheduler=lcm takes 50 or less",
    "sampling.scheduler=magic": "sampling.scheduler=magic: choose one of ddim",
    "objective=denoising": "method=lcm_lora: learns by objective=consistency alone",
    "caption_template=' '": "data: no picture has a caption",
    "prior=class_images instance_prompt=x class_prompt=y": "prior=class_images: the base itself teaches",
}


@pytest.mark.parametrize("words", BAD)
def test_what_does_not_fit_is_refused_in_one_line(run, words):
    with pytest.raises((ValueError, InstantiationException)) as told:
        run("method=lcm_lora", *FEW, "steps=1", *(words.split() if "prior" in words else [words]))
    line = str(told.value if isinstance(told.value, ValueError) else told.value.__cause__)
    assert re.match(BAD[words], line) and "\n" not in line


def test_other_methods_have_no_teacher_and_sharding_no_second_derivative(run):
    with pytest.raises(ValueError, match="objective=consistency: a method=sft has no teacher; choose method=lcm_lora"):
        run("method=sft", "objective=consistency", "steps=1")
    with pytest.raises(
        ValueError, match="smooth_diffusion_weight=1: strategy=fsdp has no second derivatives; choose strategy=ddp"
    ):
        run("method=sft", "smooth_diffusion_weight=1", "strategy=fsdp", "steps=1", name="other")


def test_a_forward_of_noise_is_ddpms(tiny):
    model, latents, noise, at = tiny(), torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([19, 999])
    known = DDIMScheduler.from_config(model.scheduler.config).add_noise(latents, noise, at)
    assert torch.allclose(add_noise(model, latents, noise, at), known, atol=1e-6)
