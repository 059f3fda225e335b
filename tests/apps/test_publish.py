"""Publishing: complete and escaped, without local paths or secrets, uploaded in one commit or not at all."""

import html
import json
import os
import random
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import quote

import huggingface_hub
import markdown
import pytest
import yaml
from conftest import compose_config
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import safe_open
from test_optuna_search import build_report
from test_security import HOSTILE, Page

from sdft.apps.publish.private_content import find_local_path
from sdft.apps.publish.publication import PublishRequest, redact_command, write_publication
from sdft.apps.publish.upload import upload_folder


@pytest.fixture(scope="module")
def finished(shared_run, tmp_path_factory) -> Path:
    """A run on images in a private folder, with hostile prompts."""
    from sdft.data.digits import Digits

    private = tmp_path_factory.mktemp("grandmother")
    for number in range(2):
        Digits()[number].image.save(private / f"passport-{number}.png")
        (private / f"passport-{number}.txt").write_text(f"sks paint, digit {number} <b onclick=alert(1)>")
    overrides = ("data=folder", f"data.path={private}", "steps=1", "sampling.steps=1", "rank=2", "resolution=32")
    prompts = "prompts=[" + ",".join(json.dumps(text) for text in HOSTILE) + "]"
    return shared_run(*overrides, prompts.replace("$", "\\$"))[1]


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of the run to publish."""
    return shutil.copytree(finished, tmp_path / "run")


def list_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_has_card_images_and_weights_in_both_formats(run):
    folder = write_publication(PublishRequest(run, "someone/sks", "apache-2.0"))
    images = {f"images/{number}.png" for number in range(len(HOSTILE))}
    weights = {"pytorch_lora_weights.safetensors", "lora-kohya.safetensors"}
    assert folder == run / "published" and list_files(folder) == {"README.md", "samples.png"} | images | weights
    _, front_matter, body = (folder / "README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(front_matter)
    assert metadata["license"] == "apache-2.0" and metadata["instance_prompt"] == "sks"
    samples = json.loads((run / "samples" / "step-000001" / "samples.json").read_text())
    assert [entry["text"] for entry in metadata["widget"]] == [sample["prompt"] for sample in samples]
    assert "2 images with sides of 32 px" in body and '"someone/sks"' in body and "`rank` | `2`" in body
    for name in weights:
        with safe_open(folder / name, "pt") as file:
            header = file.metadata()
        assert header["modelspec.author"] == "someone" and header["modelspec.license"] == "apache-2.0"
        assert re.match(r"\d{4}-\d\d-\d\dT", header["modelspec.date"]) and header["ss_training_started_at"]


def test_the_card_contains_no_active_content_and_no_outdated_scores(run):
    scores = build_report(
        {HOSTILE[3]: {"value": 0.5}},
        {HOSTILE[3]: {"higher_is_better": True, "description": HOSTILE[0]}},
        groups={"prompts": HOSTILE},
        scorers={"clip": HOSTILE[0]},
    )
    scores["states"][0]["label"] = HOSTILE[0]
    (run / "evaluation").mkdir()
    (run / "evaluation" / "scores.json").write_text(json.dumps(scores))
    shutil.copy(run / "samples.png", run / "evaluation" / "images.png")
    folder = write_publication(PublishRequest(run))
    text = (folder / "README.md").read_text().split("---\n", 2)[2]
    page = Page(markdown.markdown(text, extensions=["fenced_code", "tables"]))
    assert (
        not page.code and "0.500" in page.visible_text and "class" not in page.visible_text.partition("0.500")[2][:20]
    )
    assert "evaluation.png" in list_files(folder)
    scores["result"] = {"weights": "of an earlier result", "steps": 1}
    (run / "evaluation" / "scores.json").write_text(json.dumps(scores))
    assert "evaluation.png" not in list_files(write_publication(PublishRequest(run)))


def test_no_paths_or_image_names_are_published(run):
    folder = write_publication(PublishRequest(run, captions=False))
    for file in folder.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert b"grandmother" not in data and b"passport" not in data and str(Path.home()).encode() not in data


@pytest.mark.parametrize("name", ["samples.png", "samples/step-000001/000.png", "adapter"])
def test_no_file_outside_the_run_is_published(name, run, tmp_path):
    (run / name).rename(tmp_path / "elsewhere")
    (run / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"{name} is a link out of the folder"):
        write_publication(PublishRequest(run))


def test_caption_words_are_optional(run):
    card = (write_publication(PublishRequest(run)) / "README.md").read_text()
    assert "Most frequent words" in card
    card = (write_publication(PublishRequest(run, captions=False)) / "README.md").read_text()
    assert "Most frequent words" not in card


def test_a_card_without_a_license_says_so(run):
    card = (write_publication(PublishRequest(run)) / "README.md").read_text()
    assert "**No license**" in card and "license" not in yaml.safe_load(card.split("---\n")[1])


@pytest.mark.parametrize(
    ("value", "redacted"),
    [
        ("/home/me/photos", "…"),
        ("~/photos", "…"),
        ("../photos", "…"),
        ("[a,/srv/x.txt]", "…"),
        (r"C:\photos", "…"),
        ("'{caption} (/home/me)'", "…"),
        ("<C:/photos>", "…"),
        ("some/model", "some/model"),
        ("a cat/dog on a wall", "a cat/dog on a wall"),
    ],
)
def test_paths_are_redacted_in_the_command(value, redacted):
    assert redact_command(["/opt/x/train.py", f"option={value}", "data.path=mum"]) == [
        "train.py",
        f"option={redacted}",
        "data.path=…",
    ]


def test_a_path_is_found_in_running_text_and_in_any_notation(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    rng, top = random.Random(0), "/".join(tmp_path.parts[:3]).replace("//", "/")
    for _ in range(400):
        name = "a" + "".join(rng.choices("bü é_-()[],.'&;:=+@!%#", k=rng.randrange(9))).rstrip(" .")
        (tmp_path / name).mkdir(exist_ok=True)
        path = rng.choice([f"~/{name}", top, f"{top}/{name}"])
        before = rng.choice(["", "(", '"', "'", "[", "<", "/x and ", "data:", ", ", "`", "\n", "1/2 "])
        after = rng.choice(["", " are mine", ", nice", ".", ")", '"', "'s", ": see", "\nnew", "—", "/", "/a b/c", "!"])
        write = rng.choice(
            [str, json.dumps, lambda text: json.dumps([json.dumps(text)]), html.escape, quote, repr, Path.as_uri]
        )
        text = Path(os.path.expanduser(path)).as_uri() if write is Path.as_uri else write(f"{before}{path}{after}")
        assert find_local_path(f"see {text}", set()), text


@pytest.mark.parametrize(
    "text",
    [
        "a cat/dog on a wall",
        "and / or",
        "https://huggingface.co/usr/bin",
        "tmp/usr/bin",
        "/nowhere/usr/bin",
        "~/nowhere",
    ],
)
def test_other_texts_with_slashes_are_no_local_paths(text):
    assert not find_local_path(text, {"/home/me"}) and find_local_path(f"{text} /home/me and more", {"/home/me"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "a/b/c"}, "to=a/b/c: .*USER/NAME"),
        ({"to": "https://hub"}, "to=https://hub: .*USER/NAME"),
        ({"license": "mine"}, "license=mine: .*creativeml-openrail-m,"),
        ({"best": True}, "best=true: .* best/"),
    ],
)
def test_invalid_requests_are_rejected(options, message, run):
    with pytest.raises(ValueError, match=message):
        write_publication(PublishRequest(run, **options))
    assert not (run / "published").exists()


def test_an_unfinished_run_is_rejected(tmp_path):
    with pytest.raises(ValueError, match="run=.*no run.json"):
        write_publication(PublishRequest(tmp_path))


@pytest.mark.parametrize("content", ["pickle", "link", "path", "other path", "secret", "image"])
def test_private_content_stops_publishing_and_keeps_the_previous_folder(content, run, monkeypatch, tmp_path):
    previous = write_publication(PublishRequest(run))
    previous_files = {name: (previous / name).read_bytes() for name in list_files(previous)}
    if content == "pickle":
        (run / "adapter" / "lora.pt").write_bytes(b"x")
    elif content == "link":
        (run / "adapter" / "notes.md").symlink_to(run / "config.yaml")
    elif content == "other path":
        (tmp_path / "mine").mkdir()
        (run / "adapter" / "config.json").write_text(json.dumps({"vae": str(tmp_path / "mine" / "vae.pt")}))
    elif content == "image":
        information = PngInfo()
        information.add_text("parameters", f"lora {Path.home() / 'mine.safetensors'}", zip=True)
        Image.new("RGB", (8, 8)).save(run / "samples.png", pnginfo=information)
    elif content == "path":
        (run / "adapter" / "config.json").write_text(json.dumps({"_name_or_path": str(Path.home() / "models")}))
    else:
        monkeypatch.setenv("HF_TOKEN", "hf_feedfacefeedface")
        (run / "adapter" / "notes.txt").write_text("hf_feedfacefeedface")
    with pytest.raises(ValueError, match="publish: ") as error:
        write_publication(PublishRequest(run))
    assert "feedface" not in str(error.value) and "\n" not in str(error.value)
    assert {name: (previous / name).read_bytes() for name in list_files(previous)} == previous_files
    assert [path.name for path in run.iterdir() if path.name.startswith(".published")] == []


def test_publishing_needs_no_home_folder(run, monkeypatch):
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as without an account: pathlib raises
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"command": [*record["command"], "prompts=~/mine.txt"]}))
    assert "prompts=…" in (write_publication(PublishRequest(run)) / "README.md").read_text()


def test_the_card_of_a_dora_says_who_misreads_it(run):
    config = (run / "config.yaml").read_text().replace("use_dora: false", "use_dora: true")
    (run / "config.yaml").write_text(config)
    card = (write_publication(PublishRequest(run)) / "README.md").read_text()
    assert "ComfyUI, A1111 and diffusers misread" in card and "sdft convert" in card and "<lora:" not in card


class FakeHub:
    """A fake `HfApi` that records its calls."""

    exists, public, broken, calls = False, False, False, []

    def __init__(self, token):
        FakeHub.calls = [("token", token)]

    def repo_exists(self, to):
        return FakeHub.exists

    def model_info(self, to):
        return type("Info", (), {"private": not FakeHub.public})()

    def create_repo(self, to, private):
        FakeHub.calls.append(("repository", to, private))

    def create_commit(self, to, operations, commit_message):
        if FakeHub.broken:
            raise ConnectionError("the line\nis cut")
        FakeHub.calls.append(("commit", to, {operation.path_in_repo for operation in operations}))
        return type("Commit", (), {"commit_url": f"https://hub/{to}/commit/1"})()


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for flag in ("exists", "public", "broken"):
        monkeypatch.setattr(FakeHub, flag, False)
    return monkeypatch


def test_the_folder_is_uploaded_in_one_commit_to_a_private_repository(run, hub):
    folder = write_publication(PublishRequest(run, "someone/sks", "mit"))
    assert upload_folder(folder, "someone/sks", True, "run") == "https://hub/someone/sks/commit/1"
    commits = [entry for entry in FakeHub.calls if entry[0] == "commit"]
    assert ("repository", "someone/sks", True) in FakeHub.calls and commits == [
        ("commit", "someone/sks", list_files(folder))
    ]


def test_an_existing_public_repository_needs_private_false(run, hub):
    folder = write_publication(PublishRequest(run, "someone/sks", "mit"))
    hub.setattr(FakeHub, "exists", True)
    hub.setattr(FakeHub, "public", True)
    with pytest.raises(ValueError, match="to=someone/sks: .*private=false"):
        upload_folder(folder, "someone/sks", True, "run")
    assert not [entry for entry in FakeHub.calls if entry[0] in ("repository", "commit")]
    upload_folder(folder, "someone/sks", False, "run")
    assert [entry[0] for entry in FakeHub.calls] == ["token", "commit"]


@pytest.mark.parametrize("fault", ["token", "offline", "broken"])
def test_a_missing_token_or_network_gives_a_one_line_error(fault, run, hub):
    folder = write_publication(PublishRequest(run, "someone/sks", "mit"))
    if fault == "token":
        hub.setattr(huggingface_hub, "get_token", lambda: None)
    elif fault == "offline":
        hub.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    else:
        hub.setattr(FakeHub, "broken", True)
    with pytest.raises(ValueError, match="push=true: ") as error:
        upload_folder(folder, "someone/sks", True, "run")
    assert "\n" not in str(error.value)
    if fault == "broken":
        assert "(the line); someone/sks was created and is empty" in str(error.value)


def test_the_program_prints_the_card_and_needs_a_license_to_push(run, monkeypatch, capsys):
    from sdft.apps.publish.__main__ import main

    monkeypatch.setattr(sys, "argv", ["publish", f"run={run}"])
    main()
    printed = capsys.readouterr().out
    assert f"card       {run / 'published' / 'README.md'}" in printed and "license    none" in printed
    monkeypatch.setattr(sys, "argv", ["publish", f"run={run}", "to=someone/sks", "push=true"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.startswith("error: push=true: needs license=")


def test_option_types_match_the_config():
    from sdft.apps.publish.__main__ import OPTION_TYPES

    assert set(compose_config(config="publish")) - {"hydra"} == set(OPTION_TYPES)


def test_the_card_of_a_model_with_two_text_encoders_loads_the_embedding_into_both(run):
    (run / "adapter").rename(run / "embedding")
    record = json.loads((run / "run.json").read_text())
    facts = {"pipeline": "StableDiffusionXLPipeline", "empty_caption": "encoded"}
    (run / "run.json").write_text(json.dumps(record | facts))
    card = (write_publication(PublishRequest(run, "someone/sks", "mit")) / "README.md").read_text()
    assert "pipe = StableDiffusionXLPipeline.from_pretrained(base)" in card and '"stable-diffusion-xl"' in card
    assert 'load_file(hf_hub_download("someone/sks", "learned_embeds.safetensors"))' in card
    assert card.count("pipe.load_textual_inversion(vectors[") == 2


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("embedding", 'pipe.load_textual_inversion("someone/sks", weight_name="learned_embeds.safetensors")'),
        ("pipeline", 'pipe = StableDiffusionPipeline.from_pretrained("someone/sks")'),
    ],
)
def test_embeddings_and_pipelines_are_published(kind, code, run):
    (run / "adapter").rename(run / kind)
    folder = write_publication(PublishRequest(run, "someone/sks", "mit"))
    card = (folder / "README.md").read_text()
    assert code in card and "<lora:" not in card and "lora-kohya.safetensors" in list_files(folder)
    with safe_open(folder / "lora-kohya.safetensors", "pt") as file:
        architecture = file.metadata()["modelspec.architecture"]
    assert (
        architecture
        == {"embedding": "stable-diffusion-64/textual-inversion", "pipeline": "stable-diffusion-64/lora"}[kind]
    )
