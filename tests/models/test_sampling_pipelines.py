"""The sampling loop gives the images of plain diffusers pipelines, for every scheduler."""

import pytest
import torch
from test_sampling import max_pixel_difference

from sdft.models.noise_schedulers import SCHEDULERS
from sdft.models.sampling import Sampling

PROMPTS = ["a cat", ""]
SIZE = (48, 32)  # width, height
BUILDERS = {"sd1": ("tiny", {}), "zeros": ("small_xl", {}), "encoded": ("small_xl", {"empty_caption": "encoded"})}


@pytest.fixture(scope="module", params=BUILDERS)
def model(request):
    builder, options = BUILDERS[request.param]
    return request.getfixturevalue(builder)(**options)


@pytest.fixture(scope="module")
def xl(small_xl):
    return small_xl()


def sample_with_diffusers(model, sampling: Sampling, prompts: list[str], negative: str | None):
    """Images of the model's plain pipeline; empty prompts are given as embeddings where the model does not encode them."""
    pipeline = model.build_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = sampling.create_scheduler(model)
    text = {"prompt": prompts, "negative_prompt": None if negative is None else [negative] * len(prompts)}
    if getattr(model, "empty_caption", None) == "zeros" and "" in prompts:
        text = model.build_prompt_arguments(prompts, [negative or ""] * len(prompts))
    width, height = SIZE
    return pipeline(
        **text,
        width=width,
        height=height,
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance_scale,
        generator=[torch.Generator().manual_seed(sampling.seed) for _ in prompts],
    ).images


def assert_images_equal_those_of_diffusers(model, sampling: Sampling, prompts: list[str]) -> None:
    expected = sample_with_diffusers(model, sampling, prompts, sampling.negative_prompt)
    for image, other in zip(sampling(model, prompts, SIZE), expected, strict=True):
        assert image.size == SIZE and max_pixel_difference(image, other) <= 1


@pytest.mark.parametrize("scheduler", [None, *SCHEDULERS])
def test_every_scheduler_gives_the_images_of_diffusers(xl, scheduler):
    sampling = Sampling(3, 5.0, seed=7, scheduler=scheduler, negative_prompt="blurry")
    assert_images_equal_those_of_diffusers(xl, sampling, ["a cat"])


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_family_and_guidance_gives_the_images_of_diffusers(model, scheduler):
    for guidance, negative in ((5.0, "blurry"), (1.0, None)):
        sampling = Sampling(3, guidance, seed=7, scheduler=scheduler, negative_prompt=negative)
        assert_images_equal_those_of_diffusers(model, sampling, PROMPTS)


@pytest.mark.parametrize(("guidance", "prompts"), [(5.0, ["a cat", "a dog"]), (5.0, PROMPTS), (1.0, PROMPTS)])
def test_empty_prompts_are_those_of_diffusers_with_and_without_guidance(model, guidance, prompts):
    assert_images_equal_those_of_diffusers(model, Sampling(2, guidance), prompts)
