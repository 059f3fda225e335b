"""Base vs fine-tuned: the table, `scores.json`, the images, the HTML report."""

import json
import os
from shutil import copytree

import numpy as np
import pytest
import torch
from conftest import compose_config
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import open_dict
from PIL import Image

from sdft.evaluation.evaluate import describe_settings, evaluate, format_runs_table
from sdft.evaluation.jobs import build_evaluation_jobs
from sdft.evaluation.metrics.base import ImageMetric
from sdft.evaluation.protocol import PromptGroup
from sdft.evaluation.variants import ModelVariant
from sdft.models.sampling import Sampling
from sdft.runs.evaluations import choose_main_evaluation, list_evaluations, read_evaluations, read_scores
from sdft.runs.newest_run import find_newest_run

OVERRIDES = ("steps=1", "lr=0.05", "model.weights=pretrained", "protocol.controls=[a handwritten one]")


@pytest.fixture
def trained_run(shared_run, tmp_path, monkeypatch):
    """A fresh copy of one shared run for each test."""
    monkeypatch.chdir(tmp_path)
    return copytree(shared_run(*OVERRIDES)[1], tmp_path / "run")


def compose_evaluation_config(*overrides):
    """The config of evaluate.py."""
    cfg = compose_config(*overrides, config="evaluate")
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        cfg.pop("hydra")
    return cfg


def run_evaluation(*overrides):
    metrics = [] if any(override.startswith("metrics=") for override in overrides) else ["metrics=digits"]
    jobs = build_evaluation_jobs(compose_evaluation_config(*metrics, *overrides))
    return [evaluate(job.folder, job.cfg, job.states) for job in jobs]


CONCEPT_METRICS = {"style", "digit", "style and digit", "CMMD", "CLIP-T", "CLIP-I", "DIV", "nearest"}
CONTROL_METRICS = {"CLIP-T", "PRES", "DIV", "drift", "drift CMMD", "drift LPIPS"}


def test_scores_of_base_and_fine_tuned(trained_run, capsys):
    (report,) = run_evaluation(f"run={trained_run}", "images=2")
    saved = json.loads((trained_run / "evaluation" / "scores.json").read_text())
    assert saved == json.loads(json.dumps(report)) and saved["schema"] == 1
    assert read_scores(trained_run / "evaluation") == saved
    assert [state["label"] for state in saved["states"]] == ["base", "fine-tuned"]
    for state in saved["states"]:
        assert (
            set(state["scores"]["prompts"]) == CONCEPT_METRICS and set(state["scores"]["controls"]) == CONTROL_METRICS
        )
        digit = state["scores"]["prompts"]["digit"]
        assert len(digit["per_image"]) == digit["of"] == 10 and len(digit["per_prompt"]) == 5
        assert digit["low"] <= digit["value"] <= digit["high"]
    assert set(saved["metrics"]["prompts"]) == CONCEPT_METRICS
    assert set(saved["reference"]["prompts"]) == CONCEPT_METRICS  # pitfall 36
    assert saved["reference"]["prompts"]["style"] >= 0.99
    base, tuned = (state["scores"]["controls"]["drift"]["value"] for state in saved["states"])
    assert base == 0 < tuned
    gain = saved["states"][1]["difference"]["prompts"]["CLIP-T"]
    scores = [state["scores"]["prompts"]["CLIP-T"]["value"] for state in saved["states"]]
    assert gain["value"] == pytest.approx(scores[1] - scores[0], abs=1e-5)
    assert "fine-tuned" in capsys.readouterr().out
    assert Image.open(trained_run / "evaluation" / "images.png").width > 300


def test_images_are_generated_once_and_base_images_are_shared_by_runs(trained_run, monkeypatch):
    generated, sample_images = [], Sampling.sample_images
    monkeypatch.setattr(
        Sampling, "sample_images", lambda s, m, r, px: generated.extend(r) or sample_images(s, m, r, px)
    )
    overrides = [f"run={trained_run}", "prompts=[one,two,three,four,five]"]
    (first,) = run_evaluation(*overrides, "images=2")
    assert len(generated) == 24
    generated.clear()
    (again,) = run_evaluation(*overrides, "images=2")
    assert generated == [] and again == first
    (fewer,) = run_evaluation(*overrides, "images=1")
    assert generated == [] and fewer["images"] == 1
    run_evaluation(*overrides, "images=3")
    assert len(generated) == 12 and {seed for _, seed in generated} == {2}
    generated.clear()
    run_evaluation(*overrides, "images=2", "adapter_scales=[0.5]")
    assert len(generated) == 12  # base images are cached
    generated.clear()
    run_evaluation(*overrides, "images=2", "sampling.steps=1")
    assert len(generated) == 24
    names = [folder.name for folder in list_evaluations(trained_run)]  # one folder each, but the repeated one
    assert names == ["evaluation", *[f"evaluation-{number}" for number in (2, 3, 4, 5)]]
    assert json.loads((trained_run / "evaluation" / "scores.json").read_text()) == first
    assert all((trained_run / name / file).is_file() for name in names for file in ("report.html", "images.png"))
    assert choose_main_evaluation(read_evaluations(trained_run))["images"] == 3


def test_truncated_images_are_regenerated(trained_run):
    overrides = [f"run={trained_run}", "images=1", "prompts=[a handwritten one]"]
    (first,) = run_evaluation(*overrides)
    file = next((trained_run / "evaluation" / "images").glob("*/*.png"))
    content = file.read_bytes()
    file.write_bytes(content[:100])
    assert run_evaluation(*overrides) == [first]
    assert file.read_bytes() == content


def test_custom_prompts_have_no_zero_shot_accuracy(trained_run):
    (report,) = run_evaluation(f"run={trained_run}", "images=1", "prompts=[a handwritten one]", "controls=[]")
    assert report["groups"] == {"prompts": ["a handwritten one"]}
    assert set(report["states"][0]["scores"]["prompts"]) == CONCEPT_METRICS - {"style", "digit", "style and digit"}


@pytest.mark.slow
def test_adapter_scales_and_checkpoints_in_one_report(run):
    _, folder = run("steps=2", "lr=0.05", "save_every=1", "checkpoints_total_limit=5", "model.weights=pretrained")
    overrides = [
        f"run={folder}",
        "images=1",
        "adapter_scales=[0.5,1]",
        "checkpoints=all",
        "prompts=[a handwritten one]",
    ]
    (report,) = run_evaluation(*overrides)
    labels = [state["label"] for state in report["states"]]
    assert labels == ["base", "step 1", "step 2", "fine-tuned × 0.5", "fine-tuned"]
    scores = {state["label"]: state["scores"]["prompts"]["CLIP-T"]["value"] for state in report["states"]}
    assert scores["step 2"] == pytest.approx(scores["fine-tuned"], abs=1e-4) and len(set(scores.values())) >= 4
    page = (folder / "evaluation" / "report.html").read_text()
    assert 'id="strength"' in page and 'id="timeline"' in page and page.count('class="frame') == 3


@pytest.mark.slow
def test_a_dora_at_scale_zero_is_the_base(shared_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = copytree(shared_run(*OVERRIDES, "method.use_dora=true")[1], tmp_path / "run")
    (report,) = run_evaluation(f"run={folder}", "images=1", "sampling.steps=2", "adapter_scales=[0,1]")
    base, off, full = report["states"]
    assert [state["label"] for state in report["states"]] == ["base", "fine-tuned × 0", "fine-tuned"]
    assert off["scores"] == base["scores"] != full["scores"]
    files = [sorted((folder / "evaluation" / state["image_folder"]).glob("*.png")) for state in (base, off, full)]
    for base_image, off_image, full_image in zip(*files, strict=True):
        assert Image.open(off_image).tobytes() == Image.open(base_image).tobytes() != Image.open(full_image).tobytes()


ONE_PROMPT = ["prompts=[a handwritten one]", "images=1", "sampling.steps=2"]


@pytest.mark.slow
def test_external_lora_file_and_pipeline_folder(trained_run, shared_run):
    overrides = ["model=tiny", "data=digits", *ONE_PROMPT]
    (report,) = run_evaluation(f"adapter={trained_run / 'adapter' / 'lora-kohya.safetensors'}", *overrides)
    (run_report,) = run_evaluation(f"run={trained_run}", *ONE_PROMPT)
    tuned = [r["states"][1]["scores"]["prompts"]["CLIP-T"]["value"] for r in (report, run_report)]
    assert tuned[0] == pytest.approx(tuned[1], abs=1e-3)
    assert report["states"][1]["label"] == "lora-kohya"
    _, other = shared_run("steps=1", "method=sft", "model.weights=pretrained")
    (report,) = run_evaluation(f"adapter={other / 'pipeline'}", *overrides)
    assert [state["label"] for state in report["states"]] == ["base", "pipeline"]
    with pytest.raises(ValueError, match="adapter=x.safetensors: "):
        build_evaluation_jobs(compose_evaluation_config("adapter=x.safetensors"))


def test_adapters_with_another_alpha_or_path_have_separate_images(trained_run, tmp_path):
    from safetensors.torch import load_file, save_file

    file = trained_run / "adapter" / "pytorch_lora_weights.safetensors"
    scaled_metadata = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 80})}  # another tool's file
    (tmp_path / "scaled").mkdir()
    other = tmp_path / "scaled" / "base.safetensors"
    save_file(load_file(file), other, scaled_metadata)
    overrides = ["model=tiny", "data=digits", *ONE_PROMPT]
    one, two = (run_evaluation(f"adapter={path}", *overrides)[0] for path in (file, other))
    assert [state["label"] for state in two["states"]] == ["base", "base (adapter)"]
    drift = [report["states"][1]["scores"]["controls"]["drift"]["value"] for report in (one, two)]
    assert 0 < drift[0] < drift[1]
    assert len(list((tmp_path / "outputs" / "evaluation").iterdir())) == 2


def test_report_without_any_scorer(trained_run):
    (report,) = run_evaluation("metrics=clip", f"run={trained_run}", *ONE_PROMPT, "adapter_scales=[0.5,1]")
    assert list(report["missing"]) == ["CLIP"] and report["states"][1]["scores"] == {"prompts": {}, "controls": {}}
    page = (trained_run / "evaluation" / "report.html").read_text()
    assert "metrics.clip=" in page and 'id="strength"' not in page


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adapter_scales=[]"], r"adapter_scales=\[\]: "),
        (["adapter_scales="], "adapter_scales=: "),
        (["adapter_scales=[1,strong]"], "adapter_scales=strong: "),
        (["adapter_scales=true"], "adapter_scales=True: "),
        (["checkpoints=-1e-9"], "checkpoints=-1e-09: "),
        (["checkpoints=[[1]]"], r"checkpoints=\[1\]: "),
        (["checkpoints=best"], "checkpoints=best: .*evaluate_every=N"),
        (["checkpoints=2"], "checkpoints=2: "),
        (["checkpoints=all"], "checkpoints=all: .*save_every=N"),
        (["resolution=64"], "resolution=64: .*adapter=FILE"),
        (["model=sd15"], "model=…: "),
        (["metrics=none"], "metrics=none: "),
        (["images=0"], "images=0: "),
    ],
)
def test_invalid_options_are_rejected_in_one_line(trained_run, overrides, message):
    with pytest.raises((ValueError, InstantiationException), match=message):
        metrics = [] if "metrics=none" in overrides else ["metrics=digits"]
        cfg = compose_evaluation_config(*overrides, f"run={trained_run}", *metrics)
        [evaluate(job.folder, job.cfg, job.states) for job in build_evaluation_jobs(cfg)]
    cfg = compose_evaluation_config(f"run={trained_run}", "adapter_scales=0.5", "metrics=digits")
    assert len(build_evaluation_jobs(cfg)[0].states) == 2


@pytest.mark.slow
def test_table_of_several_runs(run, capsys):
    folders = [run("steps=1", "model.weights=pretrained", f"rank={r}", name=f"rank{r}")[1] for r in (1, 2)]
    reports = run_evaluation(f"run=[{folders[0]},{folders[1]}]", *ONE_PROMPT)
    lines = format_runs_table(dict(zip([f / "evaluation" for f in folders], reports, strict=True)))
    assert [line.split()[0] for line in lines] == ["run", "rank1", "rank2"] and "CLIP-T" in lines[0]


class MeanBrightness(ImageMetric):
    """A metric that a user adds."""

    description = "Mean brightness, 0..1."

    def __init__(self, scorer: str | None = None, limit: float = 1.0):
        super().__init__(scorer)
        self.limit = limit

    def score_images(self, images, prompts):
        return torch.tensor([min(self.limit, float(np.asarray(image).mean()) / 255) for image in images])


BRIGHTNESS = "{_target_: test_evaluate.MeanBrightness, limit: 0.5}"


def test_metrics_are_added_and_removed_by_config(trained_run):
    overrides = [
        f"run={trained_run}",
        *ONE_PROMPT,
        f"+metrics.concept.brightness={BRIGHTNESS}",
        "metrics.control.DIV=null",
    ]
    (report,) = run_evaluation(*overrides)
    scores = report["states"][1]["scores"]
    assert (
        list(scores["prompts"])[-2:] == ["brightness", "CMMD"] and 0 < scores["prompts"]["brightness"]["value"] <= 0.5
    )
    assert report["metrics"]["prompts"]["brightness"]["description"] == "Mean brightness, 0..1."
    assert set(scores["controls"]) == CONTROL_METRICS - {"DIV"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"+metrics.concept.brightness={BRIGHTNESS[:-1]}, scorer: clib}}", "metrics.concept.brightness.scorer=clib: "),
        (
            f"+metrics.concept.brightness={BRIGHTNESS[:-1]}, max: 1}}",
            "metrics.concept.brightness.max=1: MeanBrightness ",
        ),
        ("+metrics.control.other={_target_: torch.nn.Identity}", "metrics.control.other: "),
        ("metrics.distribution_metrics=[FDD]", "metrics.distribution_metrics=FDD: .*CMMD, FID, KID"),
        ("metrics.feature_extractor=dino", "metrics.feature_extractor=dino: .*metrics.dino=FOLDER"),
    ],
)
def test_invalid_metrics_are_rejected(trained_run, override, message):
    with pytest.raises((ValueError, InstantiationException), match=message):
        run_evaluation(f"run={trained_run}", *ONE_PROMPT, override)


def test_metrics_with_missing_weights_are_reported_and_skipped(trained_run):
    overrides = ["metrics.dino=some/where", "metrics.faces=none.onnx", "metrics.perceptual=clip"]
    (report,) = run_evaluation(f"run={trained_run}", "images=1", *overrides)
    assert set(report["missing"]) == {"DINO", "faces"} and "hf download" in report["missing"]["DINO"]
    assert set(report["states"][1]["scores"]["prompts"]) == CONCEPT_METRICS
    assert "hf download facebook/dino-vits16" in (trained_run / "evaluation" / "report.html").read_text()


def test_report_is_self_contained_and_escapes_user_text(trained_run, shared_run):
    run_evaluation(f"run={trained_run}", "images=1", 'prompts=["<script>alert(1)</script> three"]')
    page = (trained_run / "evaluation" / "report.html").read_text()
    assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page
    for reference in ("http://", "https://", 'src="/', "url("):
        assert reference not in page.replace("http://www.w3.org", "").replace("https://www.w3.org", ""), reference
    for anchor in ("scores", "images", "copies", "provenance"):
        assert f'id="{anchor}"' in page and f'href="#{anchor}"' in page
    assert page.count("data:image/png;base64,") > 10
    for folder in (trained_run, shared_run(*OVERRIDES)[1]):
        assert str(folder.parent) not in page


def test_run_without_metrics_is_rejected(trained_run):
    with pytest.raises(ValueError, match="metrics=null: .*metrics=clip"):
        build_evaluation_jobs(compose_evaluation_config(f"run={trained_run}"))
    with pytest.raises(ValueError, match="run=nowhere: "):
        build_evaluation_jobs(compose_evaluation_config("run=nowhere"))


def test_newest_finished_run_is_default_and_named(tmp_path, capsys):
    with pytest.raises(ValueError, match="run=null: "):
        find_newest_run(tmp_path)
    for stamp, state in (("1", "finished"), ("2", "failed")):
        (tmp_path / "lora" / stamp).mkdir(parents=True)
        (tmp_path / "lora" / stamp / "run.json").write_text(json.dumps({"format": 1, "state": state}))
    (tmp_path / "lora" / "0").mkdir()
    (tmp_path / "lora" / "0" / "run.json").write_text("of an older version")
    os.utime(tmp_path / "lora" / "0" / "run.json", (0, 0))
    assert find_newest_run(tmp_path) == find_newest_run(tmp_path) == tmp_path / "lora" / "1"
    assert capsys.readouterr().out == f"run        {tmp_path / 'lora' / '1'}, which finished last\n"


@pytest.mark.slow
def test_caption_template_applies_to_prompts_but_not_to_scoring_prompts(run):
    _, folder = run("steps=1", "model.weights=pretrained", "method=textual_inversion")
    (report,) = run_evaluation(f"run={folder}", "images=1", "protocol=data")
    assert all(prompt.endswith(" <mine>") for prompt in report["groups"]["prompts"])
    assert "digit" in report["states"][0]["scores"]["prompts"]


def test_evaluations_of_one_file_on_two_base_models_are_distinct():
    prompts, sampling = [PromptGroup("prompts", ["a cat"], ["a cat"])], Sampling()
    one, other = (
        describe_settings(compose_config(f"model={model}", "resolution=512"), [ModelVariant("base")], prompts, sampling)
        for model in ("sd14", "sd15")
    )
    assert one != other
