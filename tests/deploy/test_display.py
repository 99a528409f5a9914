"""What a person sees while weights load: bytes, rate, and what is being read."""

import io
import sys

import pytest

from penstock.deploy.display import PlainDisplay, TerminalDisplay, open_display


def test_plain_lines_say_bytes_rate_and_group(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = iter([0.0, 1.0, 1.5, 2.0, 4.0])
    display = PlainDisplay(lambda: next(seconds))
    display.progress("decode", 0, 8_000_000_000, "model.embed_tokens")
    display.progress("decode", 2_000_000_000, 8_000_000_000, "model.layers.7")
    display.progress("decode", 2_100_000_000, 8_000_000_000, "model.layers.7")
    display.progress("decode", 8_000_000_000, 8_000_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "decode: loading 0%, 0.00 of 8.00 GB, model.embed_tokens",
        "decode: loading 25%, 2.00 of 8.00 GB, 2.00 GB/s, model.layers.7",
        "decode: loading 100%, 8.00 of 8.00 GB, 4.00 GB/s",
    ]
    display.loaded()
    display.progress("decode", 0, 0)
    assert "decode: loading 0%" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_bar_per_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys, "stderr", Terminal())
    display = open_display()
    assert isinstance(display, TerminalDisplay)
    display.progress("prefill", 0, 100_000_000, "lm_head")
    display.progress("decode", 50_000_000, 200_000_000, "model.layers.3")
    display.progress("decode", 50_000_000, 100_000_000, "model.layers.4")  # less is to be read
    display.say("[decode] a line")
    display._progress.refresh()
    display.loaded()
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "prefill loading" in shown and "lm_head" in shown and "[decode] a line" in shown
    assert "50.0/100.0 MB" in shown and "model.layers.4" in shown
