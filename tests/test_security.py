"""Security: inputs run no code, outputs have no active content, and no secret is written."""

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
from conftest import ROOT, compose_config, run_training
from omegaconf import OmegaConf
from packaging.requirements import Requirement
from pages import Page
from PIL import Image
from test_loggers import read_wandb_records

from sdft.config import check_config
from sdft.data.dataset import ImageDataset
from sdft.data.hf_dataset import HuggingFaceDataset
from sdft.data.image_folder import ImageFolder
from sdft.data.transforms import CaptionTemplate
from sdft.data.webdataset import WebDatasetShards
from sdft.evaluation.variants import build_file_variants
from sdft.models.embedded import ASSETS_FOLDER
from sdft.models.loading import load_stable_diffusion

SECRET = "feedface" * 5
SECRET_VARIABLES = ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MY_SECRET", "SOMETHING_ELSE")
HOSTILE = [
    "<script>alert(1)</script> \"><img src=x onerror='alert(1)'>",
    "{0.__class__} {caption.__class__} {{ 7*7 }} {% raw %} %s %(x)s ${name}",
    "---\nlicense: x\n---\n```\n````\n~~~\n<script>alert(1)</script>",
    "`<b onclick=alert(1)>` [x](javascript:alert(1)) ]]> --> </textarea></title>",
]


class MaliciousPickle:
    """Creates a folder when unpickled."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def write_malicious_file(tmp_path):
    """A function that writes a pickle with code to a file; fails at the end if the code has run."""

    def write(file: Path) -> Path:
        if file.suffix == ".safetensors":
            file.write_bytes(pickle.dumps(MaliciousPickle(tmp_path / "boom")))
        else:
            torch.save({"weight": MaliciousPickle(tmp_path / "boom")}, file)
        return file

    yield write
    assert not (tmp_path / "boom").exists()


def get_error(task) -> str:
    """The one-line message of the `ValueError` that the task raises."""
    with pytest.raises(ValueError) as error:
        task()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["lora.bin", "lora.pt", "lora.safetensors", "learned_embeds.bin"])
def test_a_pickled_lora_is_rejected(name, write_malicious_file, tmp_path, tiny):
    file, model = write_malicious_file(tmp_path / name), tiny()
    assert str(file) in get_error(lambda: build_file_variants(file, [1.0])[1].load(model))


@pytest.mark.parametrize("name", ["learned_embeds.bin", "learned_embeds.pt", "learned_embeds.safetensors"])
def test_a_pickled_embedding_is_rejected(name, write_malicious_file, tmp_path, tiny):
    from sdft.methods.textual_inversion import TextualInversion

    write_malicious_file(tmp_path / name)
    assert "not a safetensors file" in get_error(lambda: TextualInversion("my-cat").load(tiny(), tmp_path))


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model folder to modify."""
    return shutil.copytree(ASSETS_FOLDER / "tiny-sd", tmp_path / "model")


@pytest.mark.parametrize("kind", [".bin", ".safetensors"])
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_pickled_model_weights_are_rejected(part, kind, write_malicious_file, folder):
    (file,) = (folder / part).glob("*.safetensors")
    file.unlink()
    write_malicious_file(file.with_suffix(kind))
    message = get_error(lambda: load_stable_diffusion(str(folder)))
    assert ("pickles can hold code" if kind == ".bin" else "not a safetensors file") in message and part in message


def test_pickled_feature_extractor_weights_are_rejected(write_malicious_file, tmp_path):
    from transformers import ViTConfig

    from sdft.evaluation.metrics.clip import ClipFeatureExtractor
    from sdft.evaluation.metrics.dino import DinoFeatureExtractor

    assert "more than tensors" in get_error(
        lambda: ClipFeatureExtractor("RN50", str(write_malicious_file(tmp_path / "clip.pt")))
    )
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    ViTConfig(**small).save_pretrained(tmp_path / "dino")
    write_malicious_file(tmp_path / "dino" / "pytorch_model.bin")
    assert "more than tensors" in get_error(lambda: DinoFeatureExtractor(str(tmp_path / "dino")))


@pytest.mark.parametrize(
    ("file", "entries", "key"),
    [
        ("model_index.json", {"unet": ["evil", "Evil"]}, "unet"),
        ("model_index.json", {"_class_name": ["evil", "Evil"]}, "_class_name"),
        ("text_encoder/config.json", {"auto_map": {"AutoModel": "evil.Evil"}, "model_type": "evil"}, "auto_map"),
        ("unet/config.json", {"auto_map": {"AutoModel": "evil.Evil"}}, "auto_map"),
        ("tokenizer/tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}, "auto_map"),
        ("scheduler/scheduler_config.json", {"_class_name": "Evil"}, "scheduler: Evil "),
        ("scheduler/scheduler_config.json", {"_class_name": "DiffusionPipeline"}, "scheduler: DiffusionPipeline "),
    ],
)
@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_a_model_with_custom_code_is_rejected(file, entries, key, weights, folder, tmp_path):
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | entries))
    for parent in (folder, folder / "unet", folder / "text_encoder", folder / "tokenizer"):
        (parent / "evil.py").write_text(f"import os; os.mkdir({str(tmp_path / 'boom')!r})\nclass Evil: pass\n")
    assert key in get_error(lambda: load_stable_diffusion(str(folder), weights=weights))
    assert not (tmp_path / "boom").exists()


def test_the_package_never_executes_external_code():
    """No call evaluates text, unpickles objects, or loads code from the hub."""
    forbidden = {"eval", "exec", "compile", "__import__", "unsafe_load", "full_load"}
    allowed_calls = {"eval": "Attribute", "compile": "Attribute"}  # module.eval(), torch.compile(), re.compile()
    for file in (ROOT / "sdft").rglob("*.py"):
        text = file.read_text()
        assert not re.search(
            r"custom_pipeline|trust_remote_code=True|allow_pickle=(?!False)|torch\.hub\.load|yaml\.load\b", text
        ), file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                unsafe = names & {"pickle", "shelve", "marshal", "dill", "cloudpickle", "joblib"}
                assert not unsafe or names == {"pickle", "UnpicklingError"}, file
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in forbidden:
                assert type(node.func).__name__ == allowed_calls.get(name), f"{file}:{node.lineno}"
            arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if ast.unparse(node.func) == "torch.load":
                assert arguments.get("weights_only") == "True", f"{file}:{node.lineno}"
            if "create_model" in name:
                assert arguments.get("weights_only") == "True", f"{file}:{node.lineno}"


@pytest.mark.parametrize("name", ["a.txt", "a.mask.png", "metadata.jsonl"])
def test_links_beside_images_are_not_followed_out_of_the_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / "a.png")
    Image.new("RGB", (8, 8), "white").save(tmp_path / "a.mask.png")
    (tmp_path / "a.txt").write_text("a secret")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a secret"}')
    (tmp_path / "in" / name).symlink_to(tmp_path / name)
    assert get_error(lambda: ImageFolder("in", caption="x")).startswith(f"in/{name}: ")


@pytest.mark.parametrize("name", ["../secret.png", "ABSOLUTE", "sub/../../secret.png"])
def test_tables_cannot_reference_files_outside_their_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "in").mkdir()
    for file in (tmp_path / "secret.png", tmp_path / "in" / "a.png"):
        Image.new("RGB", (8, 8)).save(file)
    name = str(tmp_path / "secret.png") if name == "ABSOLUTE" else name
    rows = [{"file_name": "a.png", "text": "x"}, {"file_name": name, "text": "x"}]
    (tmp_path / "in" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert "in/metadata.jsonl:2: " in get_error(lambda: ImageFolder("in"))
    get_error(lambda: HuggingFaceDataset("in"))


def test_links_in_shards_are_skipped(tmp_path):
    (tmp_path / "secret.txt").write_text("a secret")
    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, "PNG")
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for name in ("../../a.png", "/b.png"):  # member names are never used as paths
            member = tarfile.TarInfo(name)
            member.size = len(png.getvalue())
            shard.addfile(member, io.BytesIO(png.getvalue()))
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
def test_a_template_formats_only_the_caption(template):
    assert f"caption_template={template}: " in get_error(lambda: CaptionTemplate(ImageDataset(), template))


@pytest.mark.parametrize("text", HOSTILE)
def test_a_caption_is_not_formatted_by_a_template(text):
    assert CaptionTemplate(ImageDataset(), "{caption} in oil %s").format_text(text) == f"{text} in oil %s"


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory):
    """A logged and evaluated run with hostile captions, and secrets in its environment."""
    import wandb

    home, cwd = tmp_path_factory.mktemp("hostile"), Path.cwd()
    (home / "photos").mkdir()
    for number in range(len(HOSTILE)):
        Image.effect_noise((32, 32), 60 + 9 * number).convert("RGB").save(home / "photos" / f"{number}.png")
    rows = [{"file_name": f"{number}.png", "text": text} for number, text in enumerate(HOSTILE)]
    (home / "photos" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    overrides = ["data=folder", "data.path=photos", "resolution=32", "logger=wandb", "logger.mode=offline", "steps=1"]
    overrides += [
        "metrics=clip",
        "metrics.clip=tiny-clip",
        "metrics.pretrained=null",
        "protocol.images=1",
        "save_every=1",
    ]
    wandb.teardown()  # its process keeps the environment in which it started
    with pytest.MonkeyPatch.context() as patch:
        for name in SECRET_VARIABLES:
            patch.setenv(name, SECRET)
        patch.chdir(home)
        _, folder = run_training(home, *overrides)
        wandb.teardown()
    assert Path.cwd() == cwd
    return folder


class PageWithLinks(Page):
    def handle_starttag(self, tag, attributes):
        super().handle_starttag(tag, attributes)
        self.code += [value for _, value in attributes if "javascript:" in str(value).lower()[:20]]


def test_pages_show_captions_as_text(hostile_run, tmp_path):
    from sdft.sweeps.compare import compare_runs

    compare_runs([hostile_run], tmp_path)
    for file in (hostile_run / "evaluation" / "report.html", tmp_path / "compare.html"):
        page = PageWithLinks(file.read_text())
        assert not [code for code in page.code if "alert(" in code], file
        assert all(text in page.visible_text for text in HOSTILE), file


def test_the_card_shows_a_prompt_as_text(hostile_run):
    import markdown

    _, front_matter, body = (hostile_run / "adapter" / "README.md").read_text().split("---\n", 2)
    assert set(yaml.safe_load(front_matter)) == {"library_name", "base_model", "pipeline_tag", "tags"}
    page = PageWithLinks(markdown.markdown(body, extensions=["fenced_code"]))
    assert not page.code and json.dumps(HOSTILE[0])[:20] in page.visible_text


@pytest.mark.parametrize("text", HOSTILE)
def test_no_prompt_breaks_out_of_the_card(text, hostile_run, tmp_path, tiny):
    from types import SimpleNamespace

    import markdown

    from sdft.models.sampling import Sampling
    from sdft.training.export.model_card import write_model_card

    (tmp_path / "adapter").mkdir()
    shutil.copy(hostile_run / "samples.png", tmp_path)
    model = tiny()
    model.name = f"x/{text}"
    module = SimpleNamespace(model=model, method=SimpleNamespace(), trainer=SimpleNamespace(global_step=1))
    sampling = Sampling(steps=1, guidance_scale=1, scheduler="ddim", negative_prompt=text)
    write_model_card(tmp_path / "adapter", "name", module, sampling, [text], 32, ["train.py", f"prompts=[{text}]"])
    _, front_matter, body = (tmp_path / "adapter" / "README.md").read_text().split("---\n", 2)
    assert set(yaml.safe_load(front_matter)) == {"library_name", "base_model", "pipeline_tag", "tags"}
    page = PageWithLinks(markdown.markdown(body, extensions=["fenced_code"]))
    assert not page.code


def test_wandb_and_json_files_have_unmodified_captions(hostile_run):
    (file,) = hostile_run.glob("wandb/offline-run-*/run-*.wandb")
    history = [
        item for r in read_wandb_records(file) if r.WhichOneof("record_type") == "history" for item in r.history.item
    ]
    captions = [json.loads(item.value_json) for item in history if ".".join(item.nested_key) == "samples.captions"]
    assert captions and all(logged == HOSTILE for logged in captions)
    assert json.loads((hostile_run / "data.json").read_text())
    samples = json.loads(next(hostile_run.glob("samples/step-*/samples.json")).read_text())
    assert [sample["prompt"] for sample in samples] == HOSTILE


def test_a_run_writes_no_secret_of_its_environment(hostile_run):
    files = [file for file in hostile_run.rglob("*") if file.is_file()]
    assert any("wandb" in file.parts for file in files) and any(file.suffix == ".ckpt" for file in files)
    assert not [file for file in files if SECRET.encode() in file.read_bytes()]


@pytest.mark.parametrize("name", SECRET_VARIABLES[:-1])
def test_a_secret_in_an_option_is_rejected_and_not_printed(name, monkeypatch):
    monkeypatch.setenv(name, SECRET)
    message = get_error(lambda: check_config(compose_program_config(f"tags=[x,{SECRET}]")))
    assert f"${name}" in message and SECRET not in message
    for value in (
        f"${{oc.env:{name}}}",
        f"at-${{oc.env:{name}}}",
        f"${{oc.decode:${{oc.env:{name}}}}}",
        "${${name}:HOME}",
    ):
        message = get_error(lambda value=value: check_config(compose_program_config(f"tags=['{value}']")))
        assert message.startswith("tags.0=") and "resolver" in message and SECRET not in message
    assert "password" in get_error(lambda: check_config(compose_program_config("tags=['s3://me:hunter2@host']")))
    monkeypatch.setenv(name, "short")
    check_config(compose_program_config("tags=[short]"))


def compose_program_config(*overrides: str):
    """The config as passed to the program."""
    cfg = compose_config(*overrides)
    cfg = OmegaConf.create({key: value for key, value in cfg.items_ex(resolve=False) if key != "hydra"})
    return OmegaConf.merge(cfg, {"logger": {"folder": "run"}})


@pytest.mark.parametrize("package", ["lightning", "pytorch-lightning"])
def test_malicious_releases_are_excluded(package):
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (requirement,) = [Requirement(line) for line in dependencies if Requirement(line).name == package]
    assert not requirement.specifier.contains("2.6.2") and not requirement.specifier.contains("2.6.3")
    (pinned,) = re.findall(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert requirement.specifier.contains(pinned)


AUDIT_STUB = """
import json, sys
def main():
    json.dump({"dependencies": DEPENDENCIES}, open(sys.argv[sys.argv.index("-o") + 1], "w"))
    sys.exit(1)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dependencies", "line", "status"),
    [
        (None, "pip-audit: not reachable; nothing was audited", 0),
        ([{"name": "a", "skip_reason": "unknown"}], "pip-audit: not reachable; nothing was audited", 0),
        ([{"name": "a", "version": "1", "vulns": [{"id": "X", "fix_versions": []}]}], "mended in no release", 0),
        ([{"name": "a", "version": "1", "vulns": [{"id": "X", "fix_versions": ["2"]}]}], "a 1: X; mended in 2", 1),
    ],
)
def test_an_audit_fails_only_for_fixable_vulnerabilities(dependencies, line, status, tmp_path):
    if dependencies is not None:
        info, metadata = "pip_audit-1.0.dist-info", "Metadata-Version: 2.1\nName: pip-audit\nVersion: 1.0\n"
        with zipfile.ZipFile(tmp_path / "pip_audit-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("stub.py", AUDIT_STUB.replace("DEPENDENCIES", repr(dependencies)))
            wheel.writestr(f"{info}/METADATA", metadata)
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/entry_points.txt", "[console_scripts]\npip-audit = stub:main\n")
            wheel.writestr(f"{info}/RECORD", "")
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}  # no test queries a registry
    done = subprocess.run(
        [ROOT / ".ci/audit"], env=os.environ | offline, capture_output=True, text=True, timeout=60, check=False
    )
    assert line in done.stdout and done.returncode == status, done.stdout + done.stderr
