"""A run's result for others: whole, escaped, without a trace of this machine, and on the hub in one commit or not at all."""

import json
import re
import shutil
import sys
from pathlib import Path

import huggingface_hub
import markdown
import pytest
import yaml
from conftest import compose_config
from safetensors import safe_open
from test_security import HOSTILE, Page

from sdft.apps.publish.publication import PublishRequest, redact_command, write_publication
from sdft.apps.publish.upload import upload_folder


@pytest.fixture(scope="module")
def finished(shared, tmp_path_factory) -> Path:
    """A run over pictures in a place that nobody need know of, with hostile prompts."""
    from sdft.data.digits import Digits

    place = tmp_path_factory.mktemp("grandmother")
    for number in range(2):
        Digits()[number].image.save(place / f"passport-{number}.png")
        (place / f"passport-{number}.txt").write_text(f"sks paint, digit {number} <b onclick=alert(1)>")
    words = ("data=folder", f"data.path={place}", "steps=1", "sampling.steps=1", "rank=2", "resolution=32")
    prompts = "prompts=[" + ",".join(json.dumps(text) for text in HOSTILE) + "]"
    return shared(*words, prompts.replace("$", "\\$"))[1]


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy to publish."""
    return shutil.copytree(finished, tmp_path / "run")


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_holds_card_pictures_and_weights_in_both_formats(run):
    folder = write_publication(PublishRequest(run, "someone/sks", "apache-2.0"))
    images = {f"images/{number}.png" for number in range(len(HOSTILE))}
    weights = {"pytorch_lora_weights.safetensors", "lora-kohya.safetensors"}
    assert folder == run / "published" and files(folder) == {"README.md", "samples.png"} | images | weights
    _, front, rest = (folder / "README.md").read_text().split("---\n", 2)
    told = yaml.safe_load(front)
    assert told["license"] == "apache-2.0" and told["instance_prompt"] == "sks"
    facts = json.loads((run / "samples" / "step-000001" / "samples.json").read_text())
    assert [entry["text"] for entry in told["widget"]] == [fact["prompt"] for fact in facts]
    assert "2 pictures with sides of 32 px" in rest and '"someone/sks"' in rest and "`rank` | `2`" in rest
    for name in weights:
        with safe_open(folder / name, "pt") as opened:
            words = opened.metadata()
        assert words["modelspec.author"] == "someone" and words["modelspec.license"] == "apache-2.0"
        assert re.match(r"\d{4}-\d\d-\d\dT", words["modelspec.date"]) and words["ss_training_started_at"]


def test_nothing_of_the_card_runs_in_a_reader(run):
    scores = {
        "states": [{"label": HOSTILE[0], "scores": {"prompts": {HOSTILE[3]: {"value": 0.5}}}}],
        "metrics": {"prompts": {HOSTILE[3]: {"number_format": "{.__class__}", "higher_is_better": True}}},
        "groups": {"prompts": HOSTILE},
        "scorers": {"clip": HOSTILE[0]},
        "images": 1,
    }
    (run / "evaluation").mkdir()
    (run / "evaluation" / "scores.json").write_text(json.dumps(scores))
    shutil.copy(run / "samples.png", run / "evaluation" / "images.png")
    folder = write_publication(PublishRequest(run))
    text = (folder / "README.md").read_text().split("---\n", 2)[2]
    page = Page(markdown.markdown(text, extensions=["fenced_code", "tables"]))
    assert (
        not page.code and "0.500" in page.visible_text and "class" not in page.visible_text.partition("0.500")[2][:20]
    )
    assert "evaluation.png" in files(folder)


def test_neither_places_nor_names_of_pictures_are_told(run):
    folder = write_publication(PublishRequest(run, captions=False))
    for file in folder.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert b"grandmother" not in data and b"passport" not in data and str(Path.home()).encode() not in data


def test_captions_are_told_or_not(run):
    told = (write_publication(PublishRequest(run)) / "README.md").read_text()
    assert "Most frequent words" in told
    assert (
        "Most frequent words" not in (write_publication(PublishRequest(run, captions=False)) / "README.md").read_text()
    )


def test_a_card_without_a_license_says_so(run):
    told = (write_publication(PublishRequest(run)) / "README.md").read_text()
    assert "No license was chosen" in told and "license" not in yaml.safe_load(told.split("---\n")[1])


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("/home/me/photos", "…"),
        ("~/photos", "…"),
        ("../photos", "…"),
        ("[a,/srv/x.txt]", "…"),
        (r"C:\photos", "…"),
        ("some/model", "some/model"),
        ("a cat/dog on a wall", "a cat/dog on a wall"),
    ],
)
def test_words_that_name_a_place_are_left_out_of_the_command(word, line):
    assert redact_command(["/opt/x/train.py", f"word={word}", "data.path=mum"]) == [
        "train.py",
        f"word={line}",
        "data.path=…",
    ]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ({"to": "a/b/c"}, "to=a/b/c: give USER/NAME"),
        ({"to": "https://hub"}, "to=https://hub: give USER/NAME"),
        ({"license": "mine"}, "license=mine: choose one of creativeml-openrail-m,"),
        ({"best": True}, "best=true: .* has no best/"),
    ],
)
def test_what_cannot_be_published_is_refused(words, line, run):
    with pytest.raises(ValueError, match=line):
        write_publication(PublishRequest(run, **words))
    assert not (run / "published").exists()


def test_a_folder_that_is_no_finished_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no finished run there"):
        write_publication(PublishRequest(tmp_path))


@pytest.mark.parametrize("plant", ["pickle", "link", "place", "secret"])
def test_what_must_not_be_given_away_stops_it_and_the_folder_of_before_stays(plant, run, monkeypatch):
    before = write_publication(PublishRequest(run))
    then = {name: (before / name).read_bytes() for name in files(before)}
    if plant == "pickle":
        (run / "adapter" / "lora.pt").write_bytes(b"x")
    elif plant == "link":
        (run / "adapter" / "notes.md").symlink_to(run / "config.yaml")
    elif plant == "place":
        (run / "adapter" / "config.json").write_text(json.dumps({"_name_or_path": str(Path.home() / "models")}))
    else:
        monkeypatch.setenv("HF_TOKEN", "hf_feedfacefeedface")
        (run / "adapter" / "notes.txt").write_text("hf_feedfacefeedface")
    with pytest.raises(ValueError, match="publish: ") as refusal:
        write_publication(PublishRequest(run))
    assert "feedface" not in str(refusal.value) and "\n" not in str(refusal.value)
    assert {name: (before / name).read_bytes() for name in files(before)} == then
    assert [path.name for path in run.iterdir() if path.name.startswith(".published")] == []


class Hub:
    """A stand-in that writes down what it is asked."""

    there, public, broken, asked = False, False, False, []

    def __init__(self, token):
        Hub.asked = [("token", token)]

    def repo_exists(self, to):
        return Hub.there

    def model_info(self, to):
        return type("Info", (), {"private": not Hub.public})()

    def create_repo(self, to, private):
        Hub.asked.append(("repository", to, private))

    def create_commit(self, to, operations, commit_message):
        if Hub.broken:
            raise ConnectionError("the line\nis cut")
        Hub.asked.append(("commit", to, {operation.path_in_repo for operation in operations}))
        return type("Commit", (), {"commit_url": f"https://hub/{to}/commit/1"})()


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for flag in ("there", "public", "broken"):
        monkeypatch.setattr(Hub, flag, False)
    return monkeypatch


def test_everything_goes_up_in_one_commit_to_a_private_repository(run, hub):
    folder = write_publication(PublishRequest(run, "someone/sks", "mit"))
    assert upload_folder(folder, "someone/sks", True, "run") == "https://hub/someone/sks/commit/1"
    commits = [entry for entry in Hub.asked if entry[0] == "commit"]
    assert ("repository", "someone/sks", True) in Hub.asked and commits == [("commit", "someone/sks", files(folder))]


def test_what_is_there_is_written_to_and_a_public_one_only_when_that_is_meant(run, hub):
    folder = write_publication(PublishRequest(run, "someone/sks", "mit"))
    hub.setattr(Hub, "there", True)
    hub.setattr(Hub, "public", True)
    with pytest.raises(ValueError, match="is there and public; give private=false"):
        upload_folder(folder, "someone/sks", True, "run")
    assert not [entry for entry in Hub.asked if entry[0] in ("repository", "commit")]
    upload_folder(folder, "someone/sks", False, "run")
    assert [entry[0] for entry in Hub.asked] == ["token", "commit"]


@pytest.mark.parametrize("fault", ["token", "offline", "broken"])
def test_without_token_or_network_one_line_tells(fault, run, hub):
    folder = write_publication(PublishRequest(run, "someone/sks", "mit"))
    if fault == "token":
        hub.setattr(huggingface_hub, "get_token", lambda: None)
    elif fault == "offline":
        hub.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    else:
        hub.setattr(Hub, "broken", True)
    with pytest.raises(ValueError, match="push=true: ") as refusal:
        upload_folder(folder, "someone/sks", True, "run")
    assert "\n" not in str(refusal.value)
    if fault == "broken":
        assert "(the line); someone/sks was made and is empty" in str(refusal.value)


def test_the_program_prints_where_to_look_and_refuses_to_push_without_a_license(run, monkeypatch, capsys):
    from sdft.apps.publish.__main__ import main

    monkeypatch.setattr(sys, "argv", ["publish", f"run={run}"])
    main()
    told = capsys.readouterr().out
    assert f"look     {run / 'published' / 'README.md'}" in told and "license  none" in told
    monkeypatch.setattr(sys, "argv", ["publish", f"run={run}", "to=someone/sks", "push=true"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.startswith("error: push=true: no license; give license=")


def test_its_words_are_those_of_its_config():
    from sdft.apps.publish.__main__ import OPTION_TYPES

    assert set(compose_config(config="publish")) - {"hydra"} == set(OPTION_TYPES)


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("embedding", 'pipe.load_textual_inversion("someone/sks", weight_name="learned_embeds.safetensors")'),
        ("pipeline", 'pipe = StableDiffusionPipeline.from_pretrained("someone/sks")'),
    ],
)
def test_what_other_methods_leave_is_published_too(kind, line, run):
    (run / "adapter").rename(run / kind)
    folder = write_publication(PublishRequest(run, "someone/sks", "mit"))
    told = (folder / "README.md").read_text()
    assert line in told and "<lora:" not in told and "lora-kohya.safetensors" in files(folder)
    with safe_open(folder / "lora-kohya.safetensors", "pt") as opened:
        kinds = opened.metadata()["modelspec.architecture"]
    assert kinds == {"embedding": "stable-diffusion-64/textual-inversion", "pipeline": "stable-diffusion-64/lora"}[kind]
