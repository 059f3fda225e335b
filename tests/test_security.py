"""Nothing that is read runs code, nothing that is written runs any in a reader, and no secret is written down."""

import ast
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, compose_config, trained
from omegaconf import OmegaConf
from packaging.requirements import Requirement
from pages import Page
from PIL import Image
from test_loggers import records

from sdft.config import check_config
from sdft.data.dataset import ImageDataset
from sdft.data.hf_dataset import HuggingFaceDataset
from sdft.data.image_folder import ImageFolder
from sdft.data.transforms import CaptionTemplate
from sdft.data.webdataset import WebDatasetShards
from sdft.evaluation.request import read_run_config
from sdft.evaluation.variants import build_file_variants
from sdft.models.embedded import ASSETS_FOLDER
from sdft.models.loading import load_stable_diffusion

SECRET = "feedface" * 5
HOLDERS = ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MY_SECRET", "SOMETHING_ELSE")
HOSTILE = [
    "<script>alert(1)</script> \"><img src=x onerror='alert(1)'>",
    "{0.__class__} {caption.__class__} {{ 7*7 }} {% raw %} %s %(x)s ${name}",
    "---\nlicense: x\n---\n```\n````\n~~~\n<script>alert(1)</script>",
    "`<b onclick=alert(1)>` [x](javascript:alert(1)) ]]> --> </textarea></title>",
]


class Bomb:
    """What is unpickled makes a folder."""

    def __init__(self, place: Path):
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)


@pytest.fixture
def planted(tmp_path):
    """A function that writes a pickle with code in it to a file; in the end its code must not have run."""

    def plant(file: Path) -> Path:
        if file.suffix == ".safetensors":
            file.write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
        else:
            torch.save({"weight": Bomb(tmp_path / "boom")}, file)
        return file

    yield plant
    assert not (tmp_path / "boom").exists()


def refused(task) -> str:
    """The one line of a refusal."""
    with pytest.raises(ValueError) as refusal:
        task()
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize("name", ["lora.bin", "lora.pt", "lora.safetensors", "learned_embeds.bin"])
def test_a_pickle_given_as_a_lora_is_refused(name, planted, tmp_path, tiny):
    file, model = planted(tmp_path / name), tiny()
    assert str(file) in refused(lambda: build_file_variants(file, [1.0])[1].load(model))


@pytest.mark.parametrize("name", ["learned_embeds.bin", "learned_embeds.pt", "learned_embeds.safetensors"])
def test_a_pickle_given_as_an_embedding_is_refused(name, planted, tmp_path, tiny):
    from sdft.methods.textual_inversion import TextualInversion

    planted(tmp_path / name)
    assert "not a safetensors file" in refused(lambda: TextualInversion("my-cat").load(tiny(), tmp_path))


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model folder to spoil."""
    return shutil.copytree(ASSETS_FOLDER / "tiny-sd", tmp_path / "model")


@pytest.mark.parametrize("kind", [".bin", ".safetensors"])
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_pickled_weights_of_a_model_are_refused(part, kind, planted, folder):
    (file,) = (folder / part).glob("*.safetensors")
    file.unlink()
    planted(file.with_suffix(kind))
    line = refused(lambda: load_stable_diffusion(str(folder)))
    assert ("pickles can hold code" if kind == ".bin" else "not a safetensors file") in line and part in line


def test_pickled_weights_of_a_judge_are_refused(planted, tmp_path):
    from transformers import ViTConfig

    from sdft.evaluation.metrics.clip import ClipFeatureExtractor
    from sdft.evaluation.metrics.dino import DinoFeatureExtractor

    assert "more than tensors" in refused(lambda: ClipFeatureExtractor("RN50", str(planted(tmp_path / "clip.pt"))))
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    ViTConfig(**small).save_pretrained(tmp_path / "dino")
    planted(tmp_path / "dino" / "pytorch_model.bin")
    assert "more than tensors" in refused(lambda: DinoFeatureExtractor(str(tmp_path / "dino")))


@pytest.mark.parametrize(
    ("file", "named", "key"),
    [
        ("model_index.json", {"unet": ["evil", "Evil"]}, "unet"),
        ("model_index.json", {"_class_name": ["evil", "Evil"]}, "_class_name"),
        ("text_encoder/config.json", {"auto_map": {"AutoModel": "evil.Evil"}, "model_type": "evil"}, "auto_map"),
        ("unet/config.json", {"auto_map": {"AutoModel": "evil.Evil"}}, "auto_map"),
        ("tokenizer/tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}, "auto_map"),
        ("scheduler/scheduler_config.json", {"_class_name": "Evil"}, "Evil is no scheduler"),
        ("scheduler/scheduler_config.json", {"_class_name": "DiffusionPipeline"}, "is no scheduler"),
    ],
)
@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_a_model_that_names_code_of_its_own_is_refused(file, named, key, weights, folder, tmp_path):
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | named))
    for place in (folder, folder / "unet", folder / "text_encoder", folder / "tokenizer"):
        (place / "evil.py").write_text(f"import os; os.mkdir({str(tmp_path / 'boom')!r})\nclass Evil: pass\n")
    assert key in refused(lambda: load_stable_diffusion(str(folder), weights=weights))
    assert not (tmp_path / "boom").exists()


def test_no_call_of_the_package_lets_code_in():
    """Of all calls: no evaluation of text, no pickles, no code from the hub."""
    forbidden = {"eval", "exec", "compile", "__import__", "unsafe_load", "full_load"}
    allowed_of = {"eval": "Attribute", "compile": "Attribute"}  # module.eval(), torch.compile(), re.compile()
    for file in (ROOT / "sdft").rglob("*.py"):
        text = file.read_text()
        assert not re.search(
            r"custom_pipeline|trust_remote_code=True|allow_pickle|torch\.hub\.load|yaml\.load\b", text
        ), file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                loads = names & {"pickle", "shelve", "marshal", "dill", "cloudpickle", "joblib"}
                assert not loads or names == {"pickle", "UnpicklingError"}, file
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in forbidden:
                assert type(node.func).__name__ == allowed_of.get(name), f"{file}:{node.lineno}"
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if ast.unparse(node.func) == "torch.load":
                assert given.get("weights_only") == "True", f"{file}:{node.lineno}"
            if "create_model" in name:
                assert given.get("weights_only") == "True", f"{file}:{node.lineno}"


def test_a_run_from_elsewhere_builds_only_what_the_configs_name(tmp_path):
    (tmp_path / "config.yaml").write_text(f"data: {{_target_: os.mkdir, path: {tmp_path / 'boom'}}}\n")
    assert "its data is os.mkdir, which no file of conf/ names" in refused(lambda: read_run_config(tmp_path))
    (tmp_path / "config.yaml").write_text("method: {_target_: sdft.runs.metadata.subprocess.run, args: [id]}\n")
    assert "its method is sdft.runs.metadata.subprocess.run" in refused(lambda: read_run_config(tmp_path))
    OmegaConf.save(OmegaConf.create({"data": compose_config().data}), tmp_path / "config.yaml")
    assert read_run_config(tmp_path).data._target_ == "sdft.data.digits.Digits"


@pytest.mark.parametrize("name", ["a.txt", "a.mask.png", "metadata.jsonl"])
def test_what_lies_beside_pictures_is_not_read_from_elsewhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / "a.png")
    Image.new("RGB", (8, 8), "white").save(tmp_path / "a.mask.png")
    (tmp_path / "a.txt").write_text("a secret")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a secret"}')
    (tmp_path / "in" / name).symlink_to(tmp_path / name)
    assert refused(lambda: ImageFolder("in", caption="x")) == f"in/{name}: a link that leads out of the folder"


@pytest.mark.parametrize("name", ["../secret.png", "ABSOLUTE", "sub/../../secret.png"])
def test_tables_name_nothing_outside_of_their_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "in").mkdir()
    for place in (tmp_path / "secret.png", tmp_path / "in" / "a.png"):
        Image.new("RGB", (8, 8)).save(place)
    name = str(tmp_path / "secret.png") if name == "ABSOLUTE" else name
    rows = [{"file_name": "a.png", "text": "x"}, {"file_name": name, "text": "x"}]
    (tmp_path / "in" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert "no picture" in refused(lambda: ImageFolder("in"))
    refused(lambda: HuggingFaceDataset("in"))


def test_members_of_shards_that_are_links_are_passed_over(tmp_path):
    (tmp_path / "secret.txt").write_text("a secret")
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for name in ("../../a.png", "/b.png"):  # names of members, which are never written to
            member = tarfile.TarInfo(name)
            member.size = len(picture.getvalue())
            shard.addfile(member, io.BytesIO(picture.getvalue()))
        for name, kind in {"../../a.txt": tarfile.SYMTYPE, "/b.txt": tarfile.LNKTYPE, "c.png": tarfile.SYMTYPE}.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(tmp_path / "secret.txt")
            shard.addfile(member)
        member = tarfile.TarInfo("d.txt")
        member.type = tarfile.DIRTYPE
        shard.addfile(member)
    source = WebDatasetShards(str(tmp_path), caption="given")
    assert source.captions() == ["given", "given"] and source[1].image.size == (8, 8)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.tar", "secret.txt"]


@pytest.mark.parametrize("template", ["{caption.__class__} x", "{0}", "{caption!r}", "{caption} {name}", "{caption"])
def test_a_template_holds_no_format_but_the_caption(template):
    assert "{caption} is all that can stand in braces" in refused(lambda: CaptionTemplate(ImageDataset(), template))


@pytest.mark.parametrize("text", HOSTILE)
def test_a_caption_with_formats_is_text_to_a_template(text):
    assert CaptionTemplate(ImageDataset(), "{caption} in oil %s").apply(text) == f"{text} in oil %s"


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A run whose captions are hostile, logged and judged, with secrets in its environment."""
    import wandb

    home, cwd = tmp_path_factory.mktemp("told"), Path.cwd()
    (home / "photos").mkdir()
    for number in range(len(HOSTILE)):
        Image.effect_noise((32, 32), 60 + 9 * number).convert("RGB").save(home / "photos" / f"{number}.png")
    rows = [{"file_name": f"{number}.png", "text": text} for number, text in enumerate(HOSTILE)]
    (home / "photos" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["data=folder", "data.path=photos", "resolution=32", "logger=wandb", "logger.mode=offline", "steps=1"]
    words += ["metrics=clip", "metrics.clip=tiny-clip", "metrics.pretrained=null", "protocol.images=1", "save_every=1"]
    wandb.teardown()  # its process has the environment that it was started in
    with pytest.MonkeyPatch.context() as patch:
        for name in HOLDERS:
            patch.setenv(name, SECRET)
        patch.chdir(home)
        _, folder = trained(home, *words)
        wandb.teardown()
    assert Path.cwd() == cwd
    return folder


class Linked(Page):
    def handle_starttag(self, tag, attributes):
        super().handle_starttag(tag, attributes)
        self.code += [value for _, value in attributes if "javascript:" in str(value).lower()[:20]]


def test_pages_show_captions_as_text(told, tmp_path):
    from sdft.sweeps.compare import compare_runs

    compare_runs([told], tmp_path)
    for file in (told / "evaluation" / "report.html", tmp_path / "compare.html"):
        page = Linked(file.read_text())
        assert not [code for code in page.code if "alert(" in code], file
        assert all(text in page.visible_text for text in HOSTILE), file


def test_the_card_shows_a_prompt_as_text(told):
    import markdown

    _, front, rest = (told / "adapter" / "README.md").read_text().split("---\n", 2)
    assert set(yaml.safe_load(front)) == {"library_name", "base_model", "pipeline_tag", "tags"}
    page = Linked(markdown.markdown(rest, extensions=["fenced_code"]))
    assert not page.code and json.dumps(HOSTILE[0])[:20] in page.visible_text


@pytest.mark.parametrize("text", HOSTILE)
def test_no_prompt_breaks_out_of_the_card(text, told, tmp_path, tiny):
    from types import SimpleNamespace

    import markdown

    from sdft.models.sampling import Sampling
    from sdft.training.export.model_card import write_model_card

    (tmp_path / "adapter").mkdir()
    shutil.copy(told / "samples.png", tmp_path)
    model = tiny()
    model.name = f"x/{text}"
    module = SimpleNamespace(model=model, method=SimpleNamespace(), trainer=SimpleNamespace(global_step=1))
    sampling = Sampling(steps=1, guidance_scale=1, scheduler="ddim", negative_prompt=text)
    write_model_card(tmp_path / "adapter", "name", module, sampling, [text], 32, ["train.py", f"prompts=[{text}]"])
    _, front, rest = (tmp_path / "adapter" / "README.md").read_text().split("---\n", 2)
    assert set(yaml.safe_load(front)) == {"library_name", "base_model", "pipeline_tag", "tags"}
    page = Linked(markdown.markdown(rest, extensions=["fenced_code"]))
    assert not page.code


def test_dashboards_and_facts_hold_captions_as_they_are(told):
    (file,) = told.glob("wandb/offline-run-*/run-*.wandb")
    history = [item for r in records(file) if r.WhichOneof("record_type") == "history" for item in r.history.item]
    captions = [json.loads(item.value_json) for item in history if ".".join(item.nested_key) == "samples.captions"]
    assert captions and all(shown == HOSTILE for shown in captions)
    assert json.loads((told / "data.json").read_text())
    facts = json.loads(next(told.glob("samples/step-*/samples.json")).read_text())
    assert [fact["prompt"] for fact in facts] == HOSTILE


def test_a_run_writes_no_secret_of_its_environment_down(told):
    files = [file for file in told.rglob("*") if file.is_file()]
    assert any("wandb" in file.parts for file in files) and any(file.suffix == ".ckpt" for file in files)
    assert not [file for file in files if SECRET.encode() in file.read_bytes()]


@pytest.mark.parametrize("name", HOLDERS[:-1])
def test_a_secret_in_a_word_is_refused_and_not_repeated(name, monkeypatch):
    monkeypatch.setenv(name, SECRET)
    for word in (f"tags=['${{oc.env:{name}}}']", f"tags=[x,{SECRET}]", f"logger.project=at-${{oc.env:{name}}}"):
        line = refused(lambda word=word: check_config(plain(compose_config(word))))
        assert f"holds the value of ${name}" in line and SECRET not in line
    monkeypatch.setenv(name, "short")
    check_config(plain(compose_config("tags=[short]")))


def plain(cfg):
    """As a program gets it."""
    cfg = OmegaConf.create({key: value for key, value in cfg.items_ex(resolve=False) if key != "hydra"})
    return OmegaConf.merge(cfg, {"logger": {"folder": "run"}})


@pytest.mark.parametrize("package", ["lightning", "pytorch-lightning"])
def test_malicious_releases_are_shut_out(package):
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (asked,) = [Requirement(line) for line in told if Requirement(line).name == package]
    assert not asked.specifier.contains("2.6.2") and not asked.specifier.contains("2.6.3")
    (pinned,) = re.findall(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert asked.specifier.contains(pinned)


STUB = """
import json, sys
def main():
    json.dump({"dependencies": FOUND}, open(sys.argv[sys.argv.index("-o") + 1], "w"))
    sys.exit(1)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("found", "line", "status"),
    [
        (None, "pip-audit: not reachable; nothing was audited", 0),
        ([{"name": "a", "skip_reason": "unknown"}], "pip-audit: not reachable; nothing was audited", 0),
        ([{"name": "a", "version": "1", "vulns": [{"id": "X", "fix_versions": []}]}], "mended in no release", 0),
        ([{"name": "a", "version": "1", "vulns": [{"id": "X", "fix_versions": ["2"]}]}], "a 1: X; mended in 2", 1),
    ],
)
def test_an_audit_fails_for_what_can_be_mended_alone(found, line, status, tmp_path):
    if found is not None:
        about, facts = "pip_audit-1.0.dist-info", "Metadata-Version: 2.1\nName: pip-audit\nVersion: 1.0\n"
        with zipfile.ZipFile(tmp_path / "pip_audit-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("stub.py", STUB.replace("FOUND", repr(found)))
            wheel.writestr(f"{about}/METADATA", facts)
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/entry_points.txt", "[console_scripts]\npip-audit = stub:main\n")
            wheel.writestr(f"{about}/RECORD", "")
    away = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}  # no test asks a registry
    done = subprocess.run(
        [ROOT / ".ci/audit"], env=os.environ | away, capture_output=True, text=True, timeout=60, check=False
    )
    assert line in done.stdout and done.returncode == status, done.stdout + done.stderr
