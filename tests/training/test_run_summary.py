"""The run summary warns about settings that would silently ruin a run."""

import json


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
