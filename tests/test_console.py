"""What a reader sees, with and without a terminal."""

from __future__ import annotations

import io

import pytest

from embodied.console import Progress, duration, rate, say, table


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_say_prints_the_text_as_it_is(capsys):
    text = "outputs/[red]x[/red]/" + "long" * 60 + " :smile: [1, 2]"
    say(text)
    assert capsys.readouterr().out == text + "\n"


def test_a_table_without_a_terminal_is_never_wrapped(capsys):
    long = "word " * 60
    table(("name", "found"), [("[bold]a[/bold]", long.strip()), ("b", "2")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].split() == ["name", "found"]
    assert lines[1].split(maxsplit=1) == ["[bold]a[/bold]", long.strip()]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (68.4, "1:08"), (3599.7, "1:00:00"), (7205, "2:00:05")])
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("per_second", "text"), [(2.14, "2.1/s"), (1234.5, "1234/s"), (0.05, "3/min"), (17.2, "17/s")])
def test_rate(per_second, text):
    assert rate(per_second) == text


def test_plain_lines_are_the_first_one_every_ten_seconds_and_the_last():
    clock, out = Clock(), io.StringIO()
    with Progress("collect", 200, "episodes", clock=clock, file=out) as progress:
        for _ in range(200):
            clock.now_s += 0.125
            progress.advance(success=0.9812)
    assert out.getvalue().splitlines() == [
        "collect  0/200 episodes",
        "collect  80/200 episodes  8/s  0:15 left  success 0.981",
        "collect  160/200 episodes  8/s  0:05 left  success 0.981",
        "collect  200/200 episodes  8/s  in 0:25  success 0.981",
    ]


def test_resumed_work_counts_neither_for_the_rate_nor_for_the_time_left():
    clock, out = Clock(), io.StringIO()
    with Progress("train", 100, "steps", done=50, clock=clock, file=out) as progress:
        clock.now_s += 10
        progress.advance(10, loss=0.5, seen_starts=3)
    lines = out.getvalue().splitlines()
    assert lines[0] == "train  50/100 steps"
    assert lines[1] == "train  60/100 steps  1/s  0:40 left  loss 0.5  seen starts 3"


def test_interrupted_work_still_says_how_far_it_came():
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt), Progress("eval", 10, "episodes", file=out) as progress:
        progress.advance(4)
        raise KeyboardInterrupt
    assert out.getvalue().splitlines()[-1].startswith("eval  4/10 episodes")


def test_on_a_terminal_it_is_a_bar(monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    clock, out = Clock(), io.StringIO()
    with Progress("collect", 4, "episodes", clock=clock, file=out) as progress:
        clock.now_s += 2
        progress.advance(4, success=1.0)
    text = out.getvalue()
    assert "\x1b[" in text
    assert "━" in text
    assert "4/4 episodes  2/s  in 0:02  success 1" in text
