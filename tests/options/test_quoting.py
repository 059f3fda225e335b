"""An override written by this package is read back unchanged by a shell, by Hydra's grammar and by OmegaConf."""

import random
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT, compose_config
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from sdft.cli.overrides import check_single_values, split_arguments
from sdft.options.quoting import format_for_shell, format_override, parse_text_value, read_literally
from sdft.runs.resume import restore_overrides
from sdft.sweeps.grid import expand_grid
from sdft.sweeps.jobs import Job

PIECES = (
    *"'\"\\${}[]()<>,:;=~ \t\n!#%&*?^`|@+-./_ab01é日",
    *(
        "${lr}",
        "${oc.env:HOME}",
        "\\${",
        "\\\\",
        "null",
        "true",
        "nan",
        "1e5",
        "1_000",
        "--",
        "\x01",
        "‮",
        "My Photos (2025)",
    ),
)
UGLY = (
    "it's",
    "a dog, a cat",
    "<cat>",
    "My Photos (2025)",
    "a=b",
    "[x]",
    "Übung & Äpfel",
    '"quoted"',
    "a\\",
    "${lr}",
    "1e3",
    "",
)


def read_back(argument: str):
    """The value of an override in the composed config."""
    return OmegaConf.to_container(
        OmegaConf.create({"value": OverridesParser.create().parse_override(argument).value()}), resolve=True
    )["value"]


def test_any_text_survives_the_shell_hydra_and_omegaconf():
    rng = random.Random(0)
    texts = [*UGLY, *("".join(rng.choices(PIECES, k=rng.randrange(1, 9))) for _ in range(1500))]
    for text in texts:
        (argument,) = shlex.split(format_for_shell("data.path", text))
        assert argument == format_override("data.path", text) and read_back(argument) == text
        if "${" not in text:
            assert parse_text_value(argument) == text


@pytest.mark.parametrize(
    "value", [None, True, 3, -0.5, 1e-5, ["a, b", "it's", 3, None], {"a b": [1, "x:y"], "c": "${lr}"}, []]
)
def test_other_values_survive_as_well(value):
    assert read_back(format_override("key", value)) == value


def test_a_composed_config_has_the_text_of_the_override():
    for text in UGLY[:-1]:
        overrides = ["data=folder", format_override("data.path", text), format_override("prompts", [text])]
        cfg = compose_config(*overrides)
        assert (cfg.data.path, list(cfg.prompts)) == (text, [text])


@pytest.mark.parametrize(
    ("argument", "correction"),
    [
        ("data.path=My Photos (2025)", """'data.path="My Photos (2025)"'"""),
        ("data.caption=it's", """'data.caption="it'"'"'s"'"""),
        ("placeholder_token=<cat>", """'placeholder_token="<cat>"'"""),
        ("data.caption=a dog, a cat", """'data.caption="a dog, a cat"'"""),
        ("images=[a (1).jpg,it's.png]", """'images=["a (1).jpg","it'"'"'s.png"]'"""),
        ("lr=1=2", """'lr="1=2"'"""),
        ("+x=a{", """'+x="a{"'"""),
    ],
)
def test_an_override_that_must_be_quoted_is_answered_with_the_corrected_one(argument, correction):
    with pytest.raises(ValueError) as error:
        check_single_values(split_arguments([argument])[1])
    assert correction in str(error.value) and str(error.value).startswith(f"{argument}: ")
    (corrected,) = shlex.split(correction)
    check_single_values(split_arguments([corrected])[1])


def test_what_has_one_meaning_is_read_without_quotes(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_back(read_literally("data.path=~/My Photos (2025)")) == f"{tmp_path}/My Photos (2025)"
    assert read_back(read_literally("adapters=[~/a,b, ~/c]")) == [f"{tmp_path}/a", "b", f"{tmp_path}/c"]
    assert read_back(read_literally("data.path=Fotos/Ábel 日本")) == "Fotos/Ábel 日本"
    assert read_back(read_literally("data.path=1_000")) == "1_000" and read_back(read_literally("name=1e3")) == "1e3"
    for argument in ("rank=4", "lr=1e-4", "~rank", "--help", "rank=1,2", "data.caption=it's"):
        assert read_literally(argument) == argument


@pytest.mark.parametrize("name", [text for text in UGLY if text and "/" not in text])
def test_a_run_is_resumed_and_reproduced_by_any_path(tmp_path, monkeypatch, name):
    folder = tmp_path / name
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text("- rank=4\n")
    monkeypatch.chdir(tmp_path)
    for option in ("resume", "reproduce"):
        for argument in (f"{option}={name}", f"{option}={folder}", format_override(option, str(folder))):
            overrides = restore_overrides([read_literally(argument), "steps=3"])
            cfg = compose_config(*overrides)
            assert (tmp_path / cfg[option]).samefile(folder) and cfg.rank == 4
            assert option == "reproduce" or Path(tmp_path, cfg.hydra.run.dir).samefile(folder)
        (argument,) = shlex.split(format_for_shell(option, folder))
        assert compose_config(*restore_overrides([argument]))[option] == str(folder)


def test_jobs_and_sweep_files_quote_their_values(tmp_path):
    (overrides,) = expand_grid({"data.caption": ["a dog, it's"], "flip": [True], "text_encoder_lr": ["${lr}"]}, [])
    assert [read_back(text) for text in overrides[:2]] == ["a dog, it's", True] and overrides[
        2
    ] == "text_encoder_lr=${lr}"
    command = Job(tmp_path / "a b (c)" / "0", overrides, "").build_command()
    assert read_back(command[-1]) == str(tmp_path / "a b (c)" / "0")


def test_no_message_pastes_a_path_into_an_override():
    """Hints such as `use resume=FOLDER` are written by `format_for_shell`, commands by `format_override`."""
    pattern = re.compile(r"(use|with|publish) (resume|reproduce|run)=\{|hydra\.run\.dir=\{")
    files = (ROOT / "sdft").rglob("*.py")
    assert not [str(file) for file in files if pattern.search(file.read_text(encoding="utf-8"))]
