"""What a run says of its speed: per second of training, and how much of that it waited for data."""

from __future__ import annotations

from rnnsearch import monitor


def test_speed_and_waiting_are_of_the_time_that_was_spent_training(monkeypatch, capsys):
    now = 100.0
    monkeypatch.setattr(monitor.time, "monotonic", lambda: now)
    progress = monitor.Monitor(loud=True, log_every=2)
    for update, waited in ((1, 0.0), (2, 0.5), (3, 0.75), (4, 0.75)):
        now += 1.0
        if update == 3:
            with progress.paused():
                now += 60.0
        progress.update(update, epoch=1, loss=3.0, tokens=50, rate=0.1, progress=update / 10, waited=waited)
    first, second = capsys.readouterr().err.splitlines()
    assert "50 tokens/s, 25.0% waiting for data" in first
    assert "50 tokens/s, 12.5% waiting for data" in second


def test_a_silent_process_says_nothing(capsys):
    progress = monitor.Monitor(loud=False, log_every=1)
    progress.update(1, epoch=1, loss=1.0, tokens=1, rate=0.1, progress=0.5, waited=0.0)
    assert capsys.readouterr().err == ""
