"""Loggers never prompt, and log what a run measures."""

import json
import struct
import time

import pytest
import wandb
from conftest import compose_config, read_scores
from wandb.proto import wandb_internal_pb2

from sdft.training import loggers
from sdft.training.loggers import is_wandb_logger


@pytest.fixture
def logged_out(monkeypatch, tmp_path):
    """No W&B login; returns the folder of the netrc file."""
    for key in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path


def test_without_a_login_wandb_is_offline_and_does_not_prompt(logged_out, monkeypatch):  # pitfall 33
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("prompted"))
    logger = loggers.build_wandb_logger(str(logged_out), "run")
    assert logger.experiment.settings._offline
    wandb.finish()


def test_with_a_login_wandb_is_online(logged_out, monkeypatch):
    assert not loggers.is_logged_in()
    (logged_out / "netrc").write_text("machine api.wandb.ai login user password key")
    (logged_out / "netrc").chmod(0o600)
    assert loggers.is_logged_in()


def test_a_bad_mode_is_refused(tmp_path):
    with pytest.raises(ValueError, match="logger.mode=loud: "):
        loggers.build_wandb_logger(str(tmp_path), "run", mode="loud")


def read_wandb_records(path):
    """The protobuf records of a `.wandb` file, once W&B's service process has written the last one."""
    for _ in range(100):
        records = list(parse_wandb_file(path))
        if records and records[-1].WhichOneof("record_type") == "exit":
            break
        time.sleep(0.1)
    return records


def parse_wandb_file(path):
    """Parse the current content of a `.wandb` file, a LevelDB log of 32 kB blocks."""
    data, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        if position + 7 + length > len(data):
            return
        part = data[position + 7 : position + 7 + length]
        parts = part if kind in (1, 2) else parts + part
        position += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record


def test_an_offline_run_has_flat_columns_metrics_and_images(run):
    _, folder = run("steps=2", "logger=wandb", "logger.mode=offline", "rank=2", "sample_every=1", "tags=[a]")
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    config, history, tags = {}, [], []
    for record in read_wandb_records(file):
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


def test_an_evaluation_is_logged_as_table_images_and_columns(run, monkeypatch):
    from sdft.evaluation.statistics import format_score_name
    from sdft.training.evaluation_logging import add_to_wandb_run

    _, folder = run("steps=1", "logger=wandb", "logger.mode=offline", "metrics=digits", "protocol.images=2")
    scores = read_scores(folder)["fine-tuned"]
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    summary, logged = {}, set()
    for record in read_wandb_records(file):
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
    content = json.loads(table.read_text())
    assert content["columns"] == ["group", "score", "base", "fine-tuned", "low", "high", "real"]
    row = next(row for row in content["data"] if row[:2] == ["prompts", "CLIP-I"])
    assert row[3] == pytest.approx(scores["CLIP-I"]) and row[4] <= row[3] <= row[5] and row[6] > 0

    run_id = json.loads((folder / "run.json").read_text())["wandb"]["id"]
    add_to_wandb_run(folder, json.loads((folder / "evaluation" / "scores.json").read_text()))
    files = list(folder.glob(f"wandb/offline-run-*/run-{run_id}.wandb"))
    assert len(files) == 2  # of one run, which `wandb sync` merges
    with pytest.raises(ValueError, match="wandb=true: "):
        add_to_wandb_run(folder / "elsewhere", {})


@pytest.mark.slow
def test_each_run_of_a_sweep_is_a_separate_wandb_run(run):
    for name in ("one", "two"):
        _, folder = run("steps=1", "logger=wandb", "logger.mode=offline", name=name)
        assert len(list(folder.glob("wandb/offline-run-*"))) == 1
        assert wandb.run is None


def test_missing_tensorboard_is_reported_with_its_package(monkeypatch, tmp_path):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="logger=tensorboard: .*pip install tensorboard"):
        loggers.build_tensorboard_logger(str(tmp_path))


def test_tensorboard_writes_an_event_file(run):
    _, folder = run("steps=1", "logger=tensorboard")
    assert list(folder.glob("tensorboard/events.*"))


def test_only_the_target_of_a_logger_says_that_it_is_one_of_wandb():
    assert is_wandb_logger(compose_config("logger=wandb").logger)
    assert not is_wandb_logger(compose_config("logger=tensorboard", "logger.folder=/logs/wandb").logger)
    assert not is_wandb_logger(compose_config("logger=none").logger)
