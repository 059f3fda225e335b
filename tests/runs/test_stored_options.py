"""A run folder is data: its options are plain values and known choices, composed anew; nothing in it is resolved or built."""

import json
import shutil

import pytest
from conftest import compose_config
from forked import ForkedProgram
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, open_dict

from sdft.apps.gallery.run_facts import format_command
from sdft.config import check_config
from sdft.evaluation.jobs import build_evaluation_jobs
from sdft.options.quoting import format_value
from sdft.runs.metadata import RECORD_FILE, read_record
from sdft.runs.resume import restore_overrides
from sdft.runs.run_config import read_run_config
from sdft.runs.stored_options import check_stored_overrides, resolve_overrides
from sdft.sweeps.results import read_finished_run

MKDIR = "{_target_: os.mkdir, path: PROBE}"
CREATED_NODE = "'${oc.create:${oc.decode:\"{_target_: os.mkdir, path: PROBE}\"}}'"
NEVER_RESOLVED = {  # values in config.yaml
    "a target that depends on an option": "method: {_target_: '${oc.select:pick_${accelerator}}', path: PROBE}",
    "a node made by a resolver": f"method: {CREATED_NODE}",
    "another target": f"data: {MKDIR}",
    "a target inside a list": f"data: {{digits: [{MKDIR}]}}",
    "a target in a new node": f"data: {{more: {MKDIR}}}",
    "a target for no node": f"prior: {MKDIR}",
    "a partial target": "method: {_partial_: true}",
    "positional arguments": "method: {_args_: [PROBE]}",
    "an interpolation": "method: {rank: '${oc.decode:4}'}",
    "an escaped interpolation": "method: {rank: '\\${oc.env:DATABASE_URL}'}",
    "an environment variable": "caption_template: 'at ${oc.env:DATABASE_URL} {caption}'",
    "a nested option": "resolution: {a: 32}",
    "a yaml tag": "data: !!python/object/apply:os.mkdir [PROBE]",
    "a date": "caption_template: 2026-01-01",
    "a missing value": "method: {rank: '???'}",
    "an alias": "a: &a [1]\nmethod: {unet_targets: *a}",
    "an unknown argument": "method: {rnak: 4}",
    "a value of another type": "method: {rank: four}",
    "no node": "method: null",
    "a prompt file elsewhere": "prompts: /etc/hostname",
    "a prompt file above": "protocol: {prompts: ../secret.txt}",
}
REFUSED_OVERRIDES = (
    "experiment=../../../stranger/evil",
    "experiment=/stranger/evil",
    "experiment=pkg://stranger.evil",
    "experiment=[digits_lora,../evil]",
    "+experiment=nowhere",
    "method@data=lora",
    "hydra/launcher=evil",
    "--config-dir=/stranger",
    "-cd",
    "-m",
    "hydra.searchpath=[file:///stranger]",
    "++hydra.run.dir=/stranger",
    "+hydra={run: {dir: /stranger}}",
    "method=${oc.create:{_target_: os.mkdir}}",
    "tags=['${oc.env:DATABASE_URL}']",
    "tags=['\\${oc.env:DATABASE_URL}']",
    "rank=${oc.decode:4}",
    "lr=${rank}",
    "optimizer._target_=os.system",
    "+callbacks.mine={_target_: os.system}",
    "+callbacks={mine: [{_target_: os.system}]}",
    "method._partial_=true",
    "rank=4,8",
    "rank=range(4)",
    "prompts=/etc/hostname",
    "rank",
    "",
    "a b=c",
)


@pytest.fixture(scope="module")
def pristine_run(tmp_path_factory):
    """The files of a run that these programs read."""
    folder = tmp_path_factory.mktemp("stranger") / "run"
    (folder / ".hydra").mkdir(parents=True)
    cfg = compose_config("rank=4", "hydra.runtime.output_dir=run")
    choices = {group: name for group, name in cfg.hydra.runtime.choices.items() if "/" not in group}
    with open_dict(cfg):
        cfg.pop("hydra")
    check_config(cfg)
    OmegaConf.save(cfg, folder / "config.yaml")
    record = {"format": 1, "state": "finished", "overrides": ["rank=4"], "choices": choices}
    (folder / RECORD_FILE).write_text(json.dumps(record))
    return folder


@pytest.fixture
def run(pristine_run, tmp_path, monkeypatch):
    """A copy of the run in the working folder; fails at the end if something of it has created `boom`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", "postgres://secret")
    yield shutil.copytree(pristine_run, tmp_path / "run")
    assert not (tmp_path / "boom").exists()


def edit_record(run, **changes) -> None:
    record = json.loads((run / RECORD_FILE).read_text())
    (run / RECORD_FILE).write_text(json.dumps(record | changes))


def edit_config(run, text: str) -> None:
    """Replace options of `config.yaml`; the text comes first, so that its keys count."""
    stored = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    key = text.partition(":")[0] if not text.startswith("a: &a") else "method"
    stored.pop(key)
    (run / "config.yaml").write_text(text.replace("PROBE", str(run.parent / "boom")) + "\n" + OmegaConf.to_yaml(stored))


def get_error(task) -> str:
    with pytest.raises(ValueError) as error:
        task()
    assert "\n" not in str(error.value) and "secret" not in str(error.value).replace("secret.txt", "")
    return str(error.value)


def test_a_run_config_equals_the_one_of_training(run):
    cfg, stored = read_run_config(run), OmegaConf.load(run / "config.yaml")
    for key in ("data", "method", "model", "metrics", "protocol", "sampling", "prior", "precision", "seed", "name"):
        assert cfg[key] == stored[key], key
    assert cfg.method.rank == 4 and "training" not in cfg and "logger" not in cfg
    assert "${" not in OmegaConf.to_yaml(cfg)


@pytest.mark.parametrize("name", NEVER_RESOLVED)
def test_a_stored_config_is_never_resolved_or_built(name, run):
    edit_config(run, NEVER_RESOLVED[name])
    error, by_signature = get_error(lambda: read_run_config(run)), ("method", "resolution")
    assert "config.yaml: " in error or error.startswith(by_signature)


def test_evaluate_builds_nothing_of_a_stored_config(run):
    edit_config(run, NEVER_RESOLVED["a target that depends on an option"])
    options = compose_config(f"run={run}", config="evaluate")
    with open_dict(options):
        options.pop("hydra")
    assert "method._target_" in get_error(lambda: build_evaluation_jobs(options))


@pytest.mark.parametrize(
    "choices", [{"method": "../evil"}, {"model": "/evil"}, {"data": ["digits", "pkg://evil"]}, {"prior": "nowhere"}]
)
def test_stored_choices_are_files_of_the_groups(choices, run):
    edit_record(run, choices=choices)
    assert "is not in conf/" in get_error(lambda: read_run_config(run))


def test_nodes_that_the_command_line_gives_are_not_read(run):
    edit_config(run, NEVER_RESOLVED["another target"])
    edit_record(run, choices={"metrics": "mine"})
    assert read_run_config(run, ("data", "metrics")).data._target_ == "sdft.data.digits.Digits"


def test_choices_that_only_configure_training_may_be_unknown(run):
    edit_record(run, choices={"experiment": "../../../stranger/evil", "callbacks": "mine", "--config-dir": "x"})
    assert read_run_config(run).method.rank == 4


@pytest.mark.parametrize("override", REFUSED_OVERRIDES)
@pytest.mark.parametrize("option", ["resume", "reproduce"])
def test_stored_overrides_are_plain(override, option, run):
    edit_record(run, overrides=["rank=4", override])
    assert get_error(lambda: restore_overrides([f"{option}={run}"])).startswith(f"{option}={run}: ")
    (run / RECORD_FILE).unlink()  # before it exists, Hydra's file counts
    (run / ".hydra" / "overrides.yaml").write_text(json.dumps(["rank=4", override]))
    get_error(lambda: restore_overrides([f"{option}={run}"]))
    assert not format_command(["train.py", "rank=4", override])[1]


def test_plain_options_of_a_run_are_restored(run):
    overrides = ["experiment=digits_lora", "~metrics", "+optimizer.eps=1e-6", "tags=[a,'b c']", "data.path='~/x y'"]
    edit_record(run, overrides=overrides)
    assert restore_overrides([f"reproduce={run}"])[:-1] == overrides
    assert format_command(["train.py", *overrides])[1]


def test_an_own_target_is_repeated_on_the_command_line_that_resumes(run):
    own = "+callbacks.mine={_target_: my.Callback}"
    edit_record(run, overrides=["rank=4", own, "experiment=mine"])
    restored = restore_overrides([f"resume={run}", "experiment=mine", own])
    assert restored[:3] == ["rank=4", "experiment=mine", own]


def test_interpolations_of_a_command_line_are_stored_as_values(tmp_path):
    overrides = ["lr=1e-3", "text_encoder_lr=${lr}", "tags=['${name} it\\'s','b']", "method=${choose}", "+data.x=1"]
    cfg = OmegaConf.create({"lr": 1e-3, "text_encoder_lr": 1e-3, "tags": ["lora it's \\", "b"]})
    stored = resolve_overrides(overrides, cfg, {"method": "lora"})
    assert (
        stored[0] == "lr=1e-3" and stored[1] == "text_encoder_lr=0.001" and stored[3:] == ["method=lora", "+data.x=1"]
    )
    assert OverridesParser.create().parse_override(stored[2]).value() == ["lora it's \\", "b"]
    check_stored_overrides(stored, "run")
    for value in ({"a": [1, None, True, "x, y"]}, "\\", "a\\'b", "", "null", "1e-3"):
        assert OverridesParser.create().parse_override(f"a={format_value(value)}").value() == value


@pytest.mark.parametrize("name", ["checkpoints", "adapter", "samples", "evaluation", "config.yaml", "deep/link.png"])
def test_links_out_of_a_run_folder_are_refused(name, run, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (run / name).unlink(missing_ok=True)
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).symlink_to(tmp_path / "elsewhere")
    for read in (read_run_config, read_finished_run, lambda run: restore_overrides([f"resume={run}"])):
        assert f"{name} is a link out of the folder" in get_error(lambda read=read: read(run))
    (run / name).unlink()
    (run / name).symlink_to(run / RECORD_FILE)
    assert restore_overrides([f"reproduce={run}"])


def test_the_format_version_is_written(run):
    assert read_record(run)["format"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "attack"),
    [
        ("evaluate.py run=run", "a target that depends on an option"),
        ("evaluate.py run=run", "a node made by a resolver"),
        ("-m sdft generate run=run", "a target that depends on an option"),
        ("-m sdft stylize run=run images=.", "another target"),
        ("train.py resume=run", "experiment=../../../stranger/evil"),
        ("train.py resume=run", "--config-dir=stranger"),
        ("train.py reproduce=run", "method=${oc.create:{_target_: os.mkdir, path: PROBE}}"),
    ],
)
def test_programs_answer_a_hostile_run_in_one_line(command, attack, run, tmp_path):
    if attack in NEVER_RESOLVED:
        edit_config(run, NEVER_RESOLVED[attack])
        with open(run / "config.yaml", "a") as file:
            file.write("pick_auto: os.mkdir\npick_cpu: os.mkdir\n")
    else:
        edit_record(run, overrides=[attack.replace("PROBE", str(tmp_path / "boom"))])
    program, *arguments = command.removeprefix("-m ").split()
    name = program if program.endswith(".py") else f"-m {program}"
    done = ForkedProgram(*arguments, name=name, cwd=tmp_path).communicate()
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
