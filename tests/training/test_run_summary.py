"""The run summary warns about settings that would silently ruin a run."""

import json

from sdft.models.loading import load_stable_diffusion
from sdft.models.saving import save_pipeline
from sdft.training.run_summary import list_checkpoint_warnings


def read_warnings(folder) -> list[str]:
    return json.loads((folder / "run.json").read_text())["warnings"]


def test_truncated_captions_are_counted(run, tmp_path, capsys):  # pitfall 21
    from PIL import Image

    images = tmp_path / "images"
    images.mkdir()
    for name, text in (("a", "short"), ("b", "one two three four five " * 8)):
        Image.effect_noise((32, 32), 50 + len(text)).convert("RGB").save(images / f"{name}.png")
        (images / f"{name}.txt").write_text(text)
    _, folder = run("steps=1", "data=folder", f"data.path={images}", "prompts=[a]")
    (line,) = read_warnings(folder)
    assert line.startswith("1 of 2 captions ") and " 32 tokens; " in line
    assert line in capsys.readouterr().err


def test_a_long_warm_up_is_warned_about(run):  # pitfall 34
    _, folder = run("steps=4", "warmup=1")
    (warning,) = read_warnings(folder)
    assert "1 of 4 steps" in warning


def test_a_default_run_has_no_warnings_and_prints_its_summary(run, capsys):
    _, folder = run("steps=1", "gradient_accumulation_steps=2")
    assert read_warnings(folder) == []
    output = capsys.readouterr().out
    for part in (
        "lora rank 8 α 8 · tiny",
        "unet 66,304 + clip_l 8,192 of 3,502,763",
        "1 steps, batch 2 × 2",
        str(folder),
    ):
        assert part in output


def get_warned_options(model, resolution: int) -> list[str]:
    return [warning.partition(":")[0] for warning in list_checkpoint_warnings(model, resolution)]


def test_options_that_contradict_the_checkpoint_are_warned_about(small_model_folder, tmp_path):
    velocity = "model.prediction_type=v_prediction"
    random = load_stable_diffusion(str(small_model_folder("sdxl")), weights="random", prediction_type="v_prediction")
    assert random.checkpoint_resolution == 32 and get_warned_options(random, 16) == []
    save_pipeline(
        load_stable_diffusion(str(small_model_folder("sdxl")), weights="random"), folder := tmp_path / "pipeline"
    )
    assert get_warned_options(load_stable_diffusion(str(folder), prediction_type="v_prediction"), 32) == [velocity]
    model = load_stable_diffusion(str(folder), prediction_type="epsilon")
    for resolution, warned in {16: True, 24: False, 32: False, 64: False, 96: True}.items():
        assert get_warned_options(model, resolution) == [f"resolution={resolution}"] * warned
