"""What a person sees."""

from __future__ import annotations

import io
import pty
import termios

import pytest
from rich.console import Console

from pipeline.demo.rich_screen import RichScreen
from pipeline.demo.screen import PlainScreen, Screen, open_screen, outputs_line
from pipeline.demo.summary import Memory, Percentiles, StageTime, Summary
from schemas.results import Label

SUMMARY = Summary(
    requests=2_000,
    results=2_000,
    dead_letters=0,
    lost=0,
    repeated=0,
    out_of_order=0,
    restarts=0,
    seconds=12.34,
    texts_per_s=162.1,
    tokens_per_s=5_754.2,
    padding_share=0.041,
    mean_batch_texts=54.2,
    latency_ms=Percentiles(1_700.0, 2_400.0, 2_600.0),
    time_ms={
        "tokenize": StageTime(1.0, 9.0),
        "encode": StageTime(950.0, 500.0),
        "postprocess": StageTime(1.0, 2.0),
        "topics": 37.0,
    },
    memory_mib={"encode": Memory(500.0, 546.3), "demo": Memory(66.0, 68.0)},
    stopped=None,
)


def plain() -> tuple[Screen, io.StringIO]:
    out = io.StringIO()
    return PlainScreen(out), out


def on_terminal(width: int) -> tuple[Screen, io.StringIO]:
    out = io.StringIO()
    console = Console(
        file=out, width=width, force_terminal=True, color_system=None, highlight=False, markup=False, emoji=False
    )
    return RichScreen(console), out


SCREENS = [plain, lambda: on_terminal(80), lambda: on_terminal(120)]


def test_outputs_of_any_ensemble_in_one_line() -> None:
    outputs = {
        "vector": [0.12345, -1.0, 2.0, 3.0],
        "mood": [Label("GOOD", 0.876), Label("BAD", 0.1), Label("NO", 0.02)],
    }
    assert outputs_line(outputs) == "mood GOOD 0.88, BAD 0.10   vector [0.123 -1.000 2.000 ... 4 numbers]"


@pytest.mark.parametrize("make", SCREENS)
def test_a_summary_says_it_all(make: type) -> None:
    screen, out = make()
    with screen:
        screen.summary(SUMMARY)
    shown = out.getvalue()
    for part in (
        "2,000 of 2,000 in 12.3 s",
        "162 texts/s, 5,754 real tokens/s",
        "4.1%",
        "54.2 texts",
        "p50 1,700 ms   p95 2,400 ms   p99 2,600 ms   topic to topic",
        "2,000 requests, each answered exactly once, in order",
    ):
        assert part in shown
    [encode] = [line.split() for line in shown.splitlines() if line.strip().startswith("encode")]
    assert encode == ["encode", "950.0", "500.0", "1,450.0", "96.7%", "546"]
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("make", SCREENS)
def test_a_text_can_not_command_the_terminal(make: type) -> None:
    screen, out = make()
    with screen:
        screen.prediction("\x1b[2Jgone [bold]\r\n\x07" + "long " * 100, {"mood": [Label("\x1b]0;x\x07", 1.0)]})
    text, outputs, *rest = out.getvalue().splitlines()
    assert "[2Jgone [bold]" in text
    assert outputs.strip().startswith("mood")
    assert rest == []
    assert "\x1b" not in text + outputs
    assert "\x07" not in text + outputs
    assert len(text) <= 120


def test_progress_and_waiting_leave_the_terminal_as_it_was() -> None:
    screen, out = on_terminal(80)
    with screen:
        screen.wait_for("Loading")
        screen.wait_for("Loading more")
        screen.say("Ready")
        screen.progress(1, 4)
        screen.warn("encode died", ["its last line"])
        screen.progress(4, 4)
    shown = out.getvalue()
    assert "penstock: encode died" in shown
    assert "4/4 texts" in shown
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l")


def test_plain_lines_say_what_takes_time_once() -> None:
    screen, out = plain()
    screen.wait_for("Loading")
    screen.wait_for("Loading")
    assert out.getvalue() == "Loading ...\n"


def test_warnings_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    screen, out = plain()
    screen.warn("encode died", ["its last line"])
    assert capsys.readouterr().err == "penstock: encode died\n    its last line\n"
    assert out.getvalue() == ""


def test_json_leaves_stdout_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with open_screen(as_json=True) as screen:
        screen.say("Ready")
        screen.prediction("text", {})
        screen.summary(SUMMARY)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "Ready\n"


def test_while_the_screen_is_drawn_on_the_terminal_does_not_write_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def writes_control_characters() -> bool:
        return bool(termios.tcgetattr(terminal)[3] & termios.ECHOCTL)

    _, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)
    with open(terminal) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        screen, _ = on_terminal(80)
        with screen:
            assert not writes_control_characters()
        assert termios.tcgetattr(terminal) == before
        assert writes_control_characters()
