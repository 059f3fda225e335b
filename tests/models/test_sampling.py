"""An image depends only on model, prompt, seed and settings."""

import pytest
from PIL import Image

from sdft.evaluation.plots.image_grid import build_labeled_grid, tile_images
from sdft.models.sampling import Sampling, eval_mode

PROMPTS = ["a handwritten one", "a handwritten two in red ink", "a handwritten nine"]


def max_pixel_difference(one, other) -> int:
    return max(abs(a - b) for a, b in zip(one.tobytes(), other.tobytes(), strict=True))


def test_images_do_not_depend_on_the_batch_size(tiny):  # pitfall 28
    model = tiny()
    full, single, fours = (
        list(Sampling(steps=3, images=2, batch_size=size)(model, PROMPTS, 32)) for size in (16, 1, 4)
    )
    assert len(full) == 6
    for other in (single, fours):
        assert max(max_pixel_difference(a, b) for a, b in zip(full, other, strict=True)) <= 2


def test_images_do_not_depend_on_the_order_of_prompts(tiny):
    model, sampling = tiny(), Sampling(steps=3)
    forward, reverse = (list(sampling(model, prompts, 32)) for prompts in (PROMPTS, PROMPTS[::-1]))
    assert max(max_pixel_difference(a, b) for a, b in zip(forward, reverse[::-1], strict=True)) <= 2


def test_each_image_of_a_prompt_has_its_own_seed(tiny):
    assert Sampling(images=2, seed=7).requests(["a", "b"]) == [("a", 7), ("a", 8), ("b", 7), ("b", 8)]
    one, two = Sampling(steps=2, images=2)(tiny(), ["a"], 32)
    assert max_pixel_difference(one, two) > 10


def test_offloaded_parts_move_once_per_call_not_per_batch(tiny, monkeypatch):  # 0.6 GB each way for SD 1.5
    model, moves = tiny(), []
    monkeypatch.setattr(model.vae, "to", lambda device: moves.append(device))
    Sampling(steps=1, images=3, batch_size=1)(model, ["a"], 32)
    assert len(moves) == 2


def test_module_modes_are_restored(tiny):
    model = tiny()
    model.unet.mid_block.train()
    before = [m.training for m in model.modules()]
    with eval_mode(model):
        assert not any(m.training for m in model.modules())
    assert [m.training for m in model.modules()] == before


def test_a_grid_arranges_its_images():
    red, blue = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    sheet = tile_images([[red, blue], [blue]])
    assert sheet.size == (10, 10)
    assert [sheet.getpixel(p) for p in ((1, 1), (7, 1), (1, 7))] == [(255, 0, 0), (0, 0, 255), (0, 0, 255)]
    assert build_labeled_grid([("a", [red])], ["a caption that is longer than the image"]).width > 128


def test_invalid_options_are_rejected():
    with pytest.raises(ValueError, match=r"sampling.steps=0: choose 1 or more"):
        Sampling(steps=0)
