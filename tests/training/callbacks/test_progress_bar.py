"""Text of the progress bar, with and without a terminal."""

from types import SimpleNamespace

from sdft.training.callbacks.progress_bar import ProgressBar


def test_it_shows_warm_up_until_there_are_metrics():
    training_metrics = SimpleNamespace(last={})
    bar = ProgressBar()
    bar.training_metrics = training_metrics
    assert bar.format_metrics() == "warming up · "
    training_metrics.last = {"loss": 0.12345}
    assert bar.format_metrics() == "loss 0.1235 · "
    training_metrics.last["images_per_second"] = 3.21
    assert bar.format_metrics() == "loss 0.1235 · 3.2 img/s · "


def test_without_a_terminal_a_line_is_printed_at_intervals(monkeypatch, capsys):
    import sdft.training.callbacks.progress_bar as progress_bar

    clock = [0.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: clock[0])
    bar = ProgressBar()
    bar.training_metrics = SimpleNamespace(last={})
    trainer = SimpleNamespace(max_steps=9, global_step=0, global_rank=0)
    bar.on_train_start(trainer, None)
    for step, seconds in ((1, 10.0), (2, 31.0), (3, 40.0)):
        clock[0], trainer.global_step = seconds, step
        bar.on_train_batch_end(trainer, None, None, None, None)
    assert capsys.readouterr().out.strip() == "2/9  warming up ·"
    bar.on_train_end(trainer, None)


def test_the_text_is_formatted_only_when_it_is_visible(monkeypatch):
    import sdft.training.callbacks.progress_bar as progress_bar

    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: 1.0)
    bar, trainer = ProgressBar(), SimpleNamespace(max_steps=9, global_step=0, global_rank=0)
    bar.training_metrics = SimpleNamespace(last={})
    bar.on_train_start(trainer, None)
    bar.format_metrics = None
    bar.on_train_batch_end(trainer, None, None, None, None)
    del bar.format_metrics
    bar.on_train_end(trainer, None)
