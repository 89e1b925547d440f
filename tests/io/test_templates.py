"""HTML templates: values are escaped, and a missing one is an error."""

from __future__ import annotations

import sys
from pathlib import Path

import jinja2
import pytest

from openblip.io.templates import render_html


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "page_package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "page.html").write_text("{% for text in texts %}\n<p>{{ text }}</p>\n{% endfor %}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "page_package", raising=False)
    return "page_package"


def test_values_are_escaped(package: str) -> None:
    page = render_html(package, "page.html", texts=["<b> & \"'", "é"])
    assert page == "<p>&lt;b&gt; &amp; &#34;&#39;</p>\n<p>é</p>\n"


def test_a_missing_value_is_an_error(package: str) -> None:
    with pytest.raises(jinja2.UndefinedError, match="texts"):
        render_html(package, "page.html")
