"""Dashboards never ask, and read back what was logged."""

import json
import struct
import time

import pytest
import wandb
from conftest import read_scores
from wandb.proto import wandb_internal_pb2

from sdft.training import loggers


@pytest.fixture
def stranger(monkeypatch, tmp_path):
    """Nobody is logged in."""
    for key in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path


def test_without_a_login_wandb_is_offline_and_asks_nothing(stranger, monkeypatch):  # pitfall 33
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    logger = loggers.build_wandb_logger(str(stranger), "run")
    assert logger.experiment.settings._offline
    wandb.finish()


def test_with_a_login_wandb_is_online(stranger, monkeypatch):
    assert not loggers.is_logged_in()
    (stranger / "netrc").write_text("machine api.wandb.ai login user password key")
    (stranger / "netrc").chmod(0o600)
    assert loggers.is_logged_in()


def test_a_bad_mode_is_refused(tmp_path):
    with pytest.raises(ValueError, match="logger.mode=loud: choose online, offline or disabled"):
        loggers.build_wandb_logger(str(tmp_path), "run", mode="loud")


def records(path):
    """The protobuf records of a `.wandb` file, once wandb's own process has written the last one."""
    for _ in range(100):
        found = list(parsed(path))
        if found and found[-1].WhichOneof("record_type") == "exit":
            break
        time.sleep(0.1)
    return found


def parsed(path):
    """What is in a `.wandb` file so far, which is a LevelDB log of 32 kB blocks."""
    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        if at + 7 + length > len(data):
            return
        parts = data[at + 7 : at + 7 + length] if kind in (1, 2) else parts + data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record


def test_an_offline_run_has_flat_columns_metrics_and_pictures(run):
    _, folder = run("steps=2", "logger=wandb", "logger.mode=offline", "rank=2", "sample_every=1", "tags=[a]")
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    config, history, tags = {}, [], []
    for record in records(file):
        kind = record.WhichOneof("record_type")
        if kind == "config":
            config |= {item.key: json.loads(item.value_json) for item in record.config.update if item.key}
        elif kind == "run":
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update if item.key}
            tags += record.run.tags
        elif kind == "history":
            history.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item})
    assert config["rank"] == 2 and config["alpha"] == 2 and config["method"] == "lora" and config["trainable"] > 0
    assert "a" in tags
    assert {row["trainer/global_step"] for row in history if "train/loss" in row} == {1, 2}
    assert {row["trainer/global_step"] for row in history if any(k.startswith("samples") for k in row)} == {0, 1, 2}


def test_an_evaluation_is_a_table_pictures_and_columns(run, monkeypatch):
    from sdft.evaluation.statistics import format_score_name
    from sdft.training.evaluation_logging import add_to_wandb_run

    _, folder = run("steps=1", "logger=wandb", "logger.mode=offline", "metrics=digits", "protocol.images=2")
    scores = read_scores(folder)["fine-tuned"]
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    summary, logged = {}, set()
    for record in records(file):
        if record.WhichOneof("record_type") == "summary":
            summary |= {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.summary.update}
        if record.WhichOneof("record_type") == "history":
            logged |= {i.key or ".".join(i.nested_key) for i in record.history.item}
    assert {name: summary[f"evaluation/{name}"] for name in scores} == pytest.approx(scores)
    assert "evaluation/controls/drift" in summary and format_score_name("controls", "drift") == "controls/drift"
    assert any(name.startswith("evaluation_images") for name in logged) and any(
        n.startswith("evaluation") for n in logged
    )
    (table,) = folder.glob("wandb/offline-run-*/files/media/table/*.json")
    told = json.loads(table.read_text())
    assert told["columns"] == ["group", "score", "base", "fine-tuned", "low", "high", "real"]
    row = next(row for row in told["data"] if row[:2] == ["prompts", "CLIP-I"])
    assert row[3] == pytest.approx(scores["CLIP-I"]) and row[4] <= row[3] <= row[5] and row[6] > 0

    identity = json.loads((folder / "run.json").read_text())["wandb"]["id"]
    add_to_wandb_run(folder / "evaluation", json.loads((folder / "evaluation" / "scores.json").read_text()))
    later = list(folder.glob(f"wandb/offline-run-*/run-{identity}.wandb"))
    assert len(later) == 2  # the same run, which `wandb sync` puts together
    with pytest.raises(ValueError, match="wandb=true: .* was not logged to W&B"):
        add_to_wandb_run(folder / "elsewhere" / "evaluation", {})


def test_each_run_of_a_sweep_is_a_wandb_run_of_its_own(run):
    for name in ("one", "two"):
        _, folder = run("steps=1", "logger=wandb", "logger.mode=offline", name=name)
        assert len(list(folder.glob("wandb/offline-run-*"))) == 1
        assert wandb.run is None


def test_tensorboard_that_is_not_installed_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="logger=tensorboard: not installed; pip install tensorboard"):
        loggers.build_tensorboard_logger(str(tmp_path))


def test_tensorboard_is_a_choice(run):
    _, folder = run("steps=1", "logger=tensorboard")
    assert list(folder.glob("tensorboard/events.*"))
