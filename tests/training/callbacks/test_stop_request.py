"""A stop request ends a run at its next step, with a checkpoint and the exit status of its signal."""

import json
import signal
import threading
import time

import pytest
import torch
from conftest import QUICK_OVERRIDES
from forked import ForkedProgram, run_forked, start_forked_ranks, wait_for_success
from lightning import LightningModule, Trainer
from safetensors.torch import load_file

from sdft.cli.signals import SignalListener
from sdft.runs.invocation import StopRequest
from sdft.training.callbacks.stop_request import StopOnRequest, StoppedOnRequest, StopRequestListener
from sdft.training.run_folder import open_run_folder
from sdft.training.trainer import fit

ADAPTER = "adapter/pytorch_lora_weights.safetensors"
OVERRIDES = [*QUICK_OVERRIDES, "batch_size=1", "data.per_digit=2", "log_every=1000", "validate_every=0", "ema=0.9"]


def start_run(folder, *overrides: str) -> ForkedProgram:
    return ForkedProgram(*OVERRIDES, *overrides, f"hydra.run.dir={folder}", cwd=folder.parent)


def wait_for_checkpoint(folder) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoints/step-*.ckpt")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def are_adapters_equal(one, other) -> bool:
    """Whether the tensors are bit-identical; the order of header entries may differ."""
    first, second = load_file(one / ADAPTER), load_file(other / ADAPTER)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


class OneWeight(LightningModule):
    """A module that calls `act` in its third batch."""

    def __init__(self, act):
        super().__init__()
        self.weight, self.act = torch.nn.Parameter(torch.ones(1)), act

    def training_step(self, batch, index):
        if index == 2:
            self.act()
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit_until(act, request: StopRequest, folder) -> Trainer:
    """Train in steps of two batches; returns the trainer of the steps that were made."""
    callbacks = [StopRequestListener(request), StopOnRequest(request)]
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    options = {"accelerator": "cpu", "default_root_dir": folder, "callbacks": callbacks}
    trainer = Trainer(max_epochs=-1, max_steps=8, accumulate_grad_batches=2, **quiet, **options)
    fit(trainer, OneWeight(act), torch.utils.data.DataLoader(range(100)))
    return trainer


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_saves_a_checkpoint_at_the_end_of_the_step(number, tmp_path):
    with SignalListener() as request, pytest.raises(StoppedOnRequest) as stop:
        fit_until(lambda: signal.raise_signal(number), request, tmp_path)
    assert stop.value.step == 2 and stop.value.status == 128 + number
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 2


def test_a_program_can_request_the_stop_from_another_thread(tmp_path):
    request = StopRequest()
    with pytest.raises(StoppedOnRequest) as stop:
        fit_until(lambda: [t := threading.Thread(target=request.send), t.start(), t.join()], request, tmp_path)
    assert stop.value.step == 2 and stop.value.status == 143


def test_signals_are_no_requests_after_training(tmp_path):
    with pytest.raises(SystemExit) as end, SignalListener() as request:
        assert fit_until(lambda: None, request, tmp_path).global_step == 8
        signal.raise_signal(signal.SIGTERM)
    assert end.value.code == 143 and not request.number


def test_ctrl_c_without_a_listener_is_no_exit_status_of_lightning(tmp_path):
    previous = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit_until(lambda: signal.raise_signal(signal.SIGINT), StopRequest(), tmp_path)
    assert signal.getsignal(signal.SIGINT) == previous


@pytest.mark.parametrize(
    ("error", "state"),
    [(KeyboardInterrupt(), "stopped"), (SystemExit(129), "stopped"), (RuntimeError(), "failed")],
)
def test_the_record_of_a_started_run_says_how_it_ended(error, state, tmp_path):
    with pytest.raises(type(error)), open_run_folder(tmp_path) as record:
        raise error
    assert not (tmp_path / "run.json").exists()  # it had not started
    with pytest.raises(type(error)), open_run_folder(tmp_path) as record:
        record.metadata["state"] = "running"
        raise error
    assert json.loads((tmp_path / "run.json").read_text())["state"] == state
    with pytest.raises(type(error)), open_run_folder(tmp_path) as record:
        record.end("trained")
        raise error
    assert json.loads((tmp_path / "run.json").read_text())["state"] == "trained"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_saves_a_checkpoint_and_exits_with_its_status_and_the_run_resumes(tmp_path, number, status):
    one = start_run(tmp_path / "one", "steps=30", "save_every=5", "checkpoints_total_limit=1")
    wait_for_checkpoint(tmp_path / "one")
    one.send_signal(number)
    output = one.communicate(timeout=60).stdout
    record = json.loads((tmp_path / "one" / "run.json").read_text())
    assert one.poll() == status and f"by {signal.Signals(number).name} at step" in output
    assert record["state"] == "stopped" and 5 <= record["stopped_at"] < 30
    assert (tmp_path / "one" / "checkpoints" / "last.ckpt").is_file() and not (tmp_path / "one" / "adapter").exists()
    if number == signal.SIGTERM:
        run_forked("resume=one", cwd=tmp_path)
        assert start_run(tmp_path / "uninterrupted", "steps=30").wait() == 0
        assert are_adapters_equal(tmp_path / "one", tmp_path / "uninterrupted")


@pytest.mark.slow
def test_two_processes_stop_together_and_resume(tmp_path):
    overrides = ["devices=2", "strategy=ddp", "steps=30"]
    one = start_run(tmp_path / "one", *overrides, "save_every=5", "checkpoints_total_limit=1")
    wait_for_checkpoint(tmp_path / "one")
    one.send_signal(signal.SIGTERM)
    assert one.wait(90) == 143
    assert json.loads((tmp_path / "one" / "run.json").read_text())["state"] == "stopped"
    for name, more in {"two": [f"resume={tmp_path / 'one'}"], "uninterrupted": []}.items():
        wait_for_success(start_forked_ranks(*OVERRIDES, *overrides, *more, f"hydra.run.dir={name}", cwd=tmp_path))
    assert are_adapters_equal(tmp_path / "two", tmp_path / "uninterrupted")
