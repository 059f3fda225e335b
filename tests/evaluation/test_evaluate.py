"""Base against fine-tuned: the table, the file, the pictures, the page."""

import json
from shutil import copytree

import pytest
from conftest import compose_config
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import open_dict
from PIL import Image

from sdft.evaluation.evaluate import evaluate, format_runs_table
from sdft.evaluation.request import build_evaluation_jobs, find_newest_run
from sdft.models.sampling import Sampling

WORDS = ("steps=1", "lr=0.05", "model.weights=pretrained", "protocol.controls=[a handwritten one]")


@pytest.fixture
def trained(shared, tmp_path, monkeypatch):
    """A copy of the same run for every test, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return copytree(shared(*WORDS)[1], tmp_path / "run")


def asked(*words):
    """The config of evaluate.py."""
    cfg = compose_config(*words, config="evaluate")
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        cfg.pop("hydra")
    return cfg


def evaluated(*words):
    judged = [] if any(word.startswith("metrics=") for word in words) else ["metrics=digits"]
    return [evaluate(job.folder, job.cfg, job.states) for job in build_evaluation_jobs(asked(*judged, *words))]


OF_PROMPTS = {"style", "digit", "style and digit", "CMMD", "CLIP-T", "CLIP-I", "DIV", "nearest"}
OF_CONTROLS = {"CLIP-T", "PRES", "DIV", "drift", "drift CMMD", "drift LPIPS"}


def test_scores_of_base_and_fine_tuned(trained, capsys):
    (report,) = evaluated(f"run={trained}", "images=2")
    written = json.loads((trained / "evaluation" / "scores.json").read_text())
    assert written == json.loads(json.dumps(report)) and written["schema"] == 1
    assert [state["label"] for state in written["states"]] == ["base", "fine-tuned"]
    for state in written["states"]:
        assert set(state["scores"]["prompts"]) == OF_PROMPTS and set(state["scores"]["controls"]) == OF_CONTROLS
        digit = state["scores"]["prompts"]["digit"]
        assert len(digit["each"]) == digit["of"] == 10 and len(digit["per_prompt"]) == 5
        assert digit["low"] <= digit["value"] <= digit["high"]
    assert set(written["metrics"]["prompts"]) == OF_PROMPTS
    assert set(written["reference"]["prompts"]) == OF_PROMPTS  # pitfall 36
    assert written["reference"]["prompts"]["style"] >= 0.99
    base, tuned = (state["scores"]["controls"]["drift"]["value"] for state in written["states"])
    assert base == 0 < tuned
    gain = written["states"][1]["difference"]["prompts"]["CLIP-T"]
    scores = [state["scores"]["prompts"]["CLIP-T"]["value"] for state in written["states"]]
    assert gain["value"] == pytest.approx(scores[1] - scores[0], abs=1e-5)
    assert "fine-tuned" in capsys.readouterr().out
    assert Image.open(trained / "evaluation" / "images.png").width > 300


def test_pictures_are_made_once_and_the_base_once_for_all_runs(trained, monkeypatch):
    made, whole = [], Sampling.sample_images
    monkeypatch.setattr(Sampling, "sample_images", lambda s, m, r, px: made.extend(r) or whole(s, m, r, px))
    words = [f"run={trained}", "prompts=[one,two,three,four,five]"]
    (first,) = evaluated(*words, "images=2")
    assert len(made) == 24
    made.clear()
    (again,) = evaluated(*words, "images=2")
    assert made == [] and again == first
    (fewer,) = evaluated(*words, "images=1")
    assert made == [] and fewer["images"] == 1
    evaluated(*words, "images=3")
    assert len(made) == 12 and {seed for _, seed in made} == {2}
    made.clear()
    evaluated(*words, "images=2", "adapter_scales=[0.5]")
    assert len(made) == 12  # the base is there
    made.clear()
    evaluated(*words, "images=2", "sampling.steps=1")
    assert len(made) == 24


def test_a_picture_that_was_cut_off_is_made_again(trained):
    words = [f"run={trained}", "images=1", "prompts=[a handwritten one]"]
    (first,) = evaluated(*words)
    victim = next((trained / "evaluation" / "images").glob("*/*.png"))
    whole = victim.read_bytes()
    victim.write_bytes(whole[:100])
    assert evaluated(*words) == [first]
    assert victim.read_bytes() == whole


def test_given_prompts_are_scored_without_questions(trained):
    (report,) = evaluated(f"run={trained}", "images=1", "prompts=[a handwritten one]", "controls=[]")
    assert report["groups"] == {"prompts": ["a handwritten one"]}
    assert set(report["states"][0]["scores"]["prompts"]) == OF_PROMPTS - {"style", "digit", "style and digit"}


def test_strengths_and_checkpoints_stand_beside_each_other(run):
    _, folder = run("steps=2", "lr=0.05", "save_every=1", "checkpoints_total_limit=5", "model.weights=pretrained")
    words = [f"run={folder}", "images=1", "adapter_scales=[0.5,1]", "checkpoints=all", "prompts=[a handwritten one]"]
    (report,) = evaluated(*words)
    labels = [state["label"] for state in report["states"]]
    assert labels == ["base", "step 1", "step 2", "fine-tuned × 0.5", "fine-tuned"]
    scores = {state["label"]: state["scores"]["prompts"]["CLIP-T"]["value"] for state in report["states"]}
    assert scores["step 2"] == pytest.approx(scores["fine-tuned"], abs=1e-4) and len(set(scores.values())) >= 4
    page = (folder / "evaluation" / "report.html").read_text()
    assert 'id="strength"' in page and 'id="timeline"' in page and page.count('class="frame') == 3


ONE = ["prompts=[a handwritten one]", "images=1", "sampling.steps=2"]


def test_a_file_from_elsewhere_and_a_pipeline_folder(trained, shared):
    words = ["model=tiny", "data=digits", *ONE]
    (report,) = evaluated(f"adapter={trained / 'adapter' / 'lora-kohya.safetensors'}", *words)
    (ours,) = evaluated(f"run={trained}", *ONE)
    tuned = [r["states"][1]["scores"]["prompts"]["CLIP-T"]["value"] for r in (report, ours)]
    assert tuned[0] == pytest.approx(tuned[1], abs=1e-3)
    assert report["states"][1]["label"] == "lora-kohya"
    _, other = shared("steps=1", "method=sft", "model.weights=pretrained")
    (report,) = evaluated(f"adapter={other / 'pipeline'}", *words)
    assert [state["label"] for state in report["states"]] == ["base", "pipeline"]
    with pytest.raises(ValueError, match="adapter=x.safetensors: give model=… with it"):
        build_evaluation_jobs(asked("adapter=x.safetensors"))


def test_adapters_of_other_strength_or_place_are_told_apart(trained, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    file = trained / "adapter" / "pytorch_lora_weights.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    louder = metadata["lora_adapter_metadata"].replace('"unet.lora_alpha": 8', '"unet.lora_alpha": 80')
    assert louder != metadata["lora_adapter_metadata"]
    (tmp_path / "louder").mkdir()
    other = tmp_path / "louder" / "base.safetensors"
    save_file(load_file(file), other, metadata | {"lora_adapter_metadata": louder})
    words = ["model=tiny", "data=digits", *ONE]
    one, two = (evaluated(f"adapter={path}", *words)[0] for path in (file, other))
    assert [state["label"] for state in two["states"]] == ["base", "base (adapter)"]
    drift = [report["states"][1]["scores"]["controls"]["drift"]["value"] for report in (one, two)]
    assert 0 < drift[0] < drift[1]
    assert len(list((tmp_path / "outputs" / "evaluation").iterdir())) == 2


def test_without_any_judge_there_is_still_a_page(trained):
    (report,) = evaluated("metrics=clip", f"run={trained}", *ONE, "adapter_scales=[0.5,1]")
    assert list(report["missing"]) == ["CLIP"] and report["states"][1]["scores"] == {"prompts": {}, "controls": {}}
    page = (trained / "evaluation" / "report.html").read_text()
    assert "its weights cannot be read" in page and 'id="strength"' not in page


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["adapter_scales=[]"], r"adapter_scales=\[\]: give at least one"),
        (["adapter_scales="], r"adapter_scales=: give numbers, such as"),
        (["adapter_scales=[1,strong]"], r"adapter_scales=strong: give numbers, such as"),
        (["adapter_scales=true"], "adapter_scales=True: give numbers, such as"),
        (["checkpoints=-1e-9"], "checkpoints=-1e-09: choose all, best, or a list of steps"),
        (["checkpoints=[[1]]"], r"checkpoints=\[1\]: choose all, best, or a list of steps"),
        (["checkpoints=best"], "checkpoints=best: .* has none; train with evaluate_every=N"),
        (["checkpoints=2"], "checkpoints=2: choose all, best, or a list of steps"),
        (["resolution=64"], "resolution=64: a run has its own; it goes with adapter=FILE alone"),
        (["model=sd15"], "model=…: a run has its own"),
        (["metrics=none"], "metrics=none: nothing to score with"),
        (["images=0"], "images=0: choose 1 or more"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(trained, words, told):
    with pytest.raises((ValueError, InstantiationException), match=told):
        cfg = asked(*words, f"run={trained}", *([] if "metrics=none" in words else ["metrics=digits"]))
        [evaluate(job.folder, job.cfg, job.states) for job in build_evaluation_jobs(cfg)]
    assert len(build_evaluation_jobs(asked(f"run={trained}", "adapter_scales=0.5", "metrics=digits"))[0].states) == 2


def test_several_runs_end_in_one_table(run, capsys):
    folders = [run("steps=1", "model.weights=pretrained", f"rank={r}", name=f"rank{r}")[1] for r in (1, 2)]
    reports = evaluated(f"run=[{folders[0]},{folders[1]}]", *ONE)
    lines = format_runs_table(dict(zip([f / "evaluation" for f in folders], reports, strict=True))).splitlines()
    assert [line.split()[0] for line in lines] == ["run", "rank1", "rank2"] and "CLIP-T" in lines[0]


def test_a_metric_without_its_weights_says_what_to_fetch_and_the_rest_goes_on(trained):
    words = ["metrics.dino=some/where", "metrics.faces=none.onnx", "metrics.perceptual=clip"]
    (report,) = evaluated(f"run={trained}", "images=1", *words)
    assert set(report["missing"]) == {"DINO", "faces"} and "hf download" in report["missing"]["DINO"]
    assert set(report["states"][1]["scores"]["prompts"]) == OF_PROMPTS
    assert "hf download facebook/dino-vits16" in (trained / "evaluation" / "report.html").read_text()


def test_the_page_stands_alone_and_escapes_what_users_wrote(trained, shared):
    evaluated(f"run={trained}", "images=1", 'prompts=["<script>alert(1)</script> three"]')
    page = (trained / "evaluation" / "report.html").read_text()
    assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page
    for outside in ("http://", "https://", 'src="/', "url("):
        assert outside not in page.replace("http://www.w3.org", "").replace("https://www.w3.org", ""), outside
    for anchor in ("scores", "pictures", "copies", "provenance"):
        assert f'id="{anchor}"' in page and f'href="#{anchor}"' in page
    assert page.count("data:image/png;base64,") > 10
    for place in (trained, shared(*WORDS)[1]):
        assert str(place.parent) not in page


def test_a_run_without_a_judge_says_how_to_choose_one(trained):
    with pytest.raises(ValueError, match="choose metrics=clip"):
        build_evaluation_jobs(asked(f"run={trained}"))
    with pytest.raises(ValueError, match="not a run folder"):
        build_evaluation_jobs(asked("run=nowhere"))


def test_the_newest_finished_run_is_taken(tmp_path):
    with pytest.raises(ValueError, match="no finished run"):
        find_newest_run(tmp_path)
    for stamp, state in (("1", "finished"), ("2", "failed")):
        (tmp_path / "lora" / stamp).mkdir(parents=True)
        (tmp_path / "lora" / stamp / "run.json").write_text(json.dumps({"state": state}))
    assert find_newest_run(tmp_path) == tmp_path / "lora" / "1"


def test_a_template_words_what_is_sampled_and_the_judge_is_asked_plainly(run):
    _, folder = run("steps=1", "model.weights=pretrained", "method=textual_inversion")
    (report,) = evaluated(f"run={folder}", "images=1", "protocol=data")
    assert all(prompt.endswith(" <mine>") for prompt in report["groups"]["prompts"])
    assert "digit" in report["states"][0]["scores"]["prompts"]
