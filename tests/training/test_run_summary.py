"""What would silently ruin a run is told before the first step."""

import json


def told(folder) -> list[str]:
    return json.loads((folder / "run.json").read_text())["warnings"]


def test_captions_that_are_cut_are_counted(run, tmp_path, capsys):  # pitfall 21
    from PIL import Image

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, text in (("a", "short"), ("b", "one two three four five " * 8)):
        Image.effect_noise((32, 32), 50 + len(text)).convert("RGB").save(pictures / f"{name}.png")
        (pictures / f"{name}.txt").write_text(text)
    _, folder = run("steps=1", "data=folder", f"data.path={pictures}", "prompts=[a]")
    (line,) = told(folder)
    assert line.startswith("1 of 2 captions are cut at 32 tokens; the longest has ")
    assert line in capsys.readouterr().err


def test_a_warm_up_that_leaves_no_time_is_warned_about(run):  # pitfall 34
    _, folder = run("steps=4", "warmup=1")
    assert told(folder) == ["warm-up takes 1 of 4 steps; more than a fifth leaves little time at the full rate"]


def test_a_plain_run_has_no_warnings_and_says_what_it_does(run, capsys):
    _, folder = run("steps=1", "gradient_accumulation_steps=2")
    assert told(folder) == []
    text = capsys.readouterr().out
    for part in (
        "lora rank 8 α 8 · tiny",
        "UNet 66,304 + text encoder 8,192 of 3,502,763",
        "1 steps × batch 2 × 2",
        str(folder),
    ):
        assert part in text
