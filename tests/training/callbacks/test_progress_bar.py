"""What the progress bar says."""

from types import SimpleNamespace

from sdft.training.callbacks.progress_bar import ProgressBar


def test_it_warms_up_until_there_are_numbers():
    training_metrics = SimpleNamespace(last={})
    bar = ProgressBar(training_metrics)
    assert bar.format_metrics() == "warming up · "
    training_metrics.last = {"loss": 0.12345}
    assert bar.format_metrics() == "loss 0.1235 · "
    training_metrics.last["images_per_second"] = 3.21
    assert bar.format_metrics() == "loss 0.1235 · 3.2 img/s · "


def test_where_there_is_no_terminal_a_line_now_and_then(monkeypatch, capsys):
    import sdft.training.callbacks.progress_bar as progress

    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = ProgressBar(SimpleNamespace(last={}))
    trainer = SimpleNamespace(max_steps=9, global_step=0, global_rank=0)
    bar.on_train_start(trainer, None)
    for step, seconds in ((1, 10.0), (2, 31.0), (3, 40.0)):
        now[0], trainer.global_step = seconds, step
        bar.on_train_batch_end(trainer, None, None, None, None)
    assert capsys.readouterr().out.strip() == "2/9  warming up ·"
    bar.on_train_end(trainer, None)
