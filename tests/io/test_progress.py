"""Progress bars: drawn on a terminal only, and then with what the caller reports."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from openblip.io import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_nothing_is_drawn_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bar("work", 3) as bar:
        assert not bar.visible
        bar.advance()
        bar.update(2, 4, description="more", status="fine")
        bar.print("[bold]a line")
    captured = capsys.readouterr()
    assert captured.err == "[bold]a line\n"
    assert captured.out == ""


def test_no_library_is_imported_off_a_terminal() -> None:
    program = "import sys\nfrom openblip.io import progress\nwith progress.bar(): pass\nprint('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_terminal_sees_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress.bar("[work]", 3, transient=False) as bar:
        assert bar.visible
        bar.advance(2, status="2 [failed]")
        bar.print("[bold]a line")
        bar.update(3)
    shown = terminal.getvalue()
    assert "[work]" in shown
    assert "3/3" in shown
    assert "2 [failed]" in shown
    assert "[bold]a line\n" in shown


def test_bytes_are_shown_with_their_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("COLUMNS", "120")
    with progress.bar("file", 4_000_000, done=1_000_000, unit="bytes", transient=False) as bar:
        bar.advance(3_000_000)
    assert "4.0/4.0 MB" in terminal.getvalue()


def test_it_can_be_asked_for_or_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with progress.bar("work", visible=False) as bar:
        bar.advance()
    assert terminal.getvalue() == ""
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    with progress.bar("work", 1, visible=True, transient=False) as bar:
        bar.advance()
    assert "1/1" in file.getvalue()
