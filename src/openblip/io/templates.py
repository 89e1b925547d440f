"""HTML pages from templates that are part of the package. Values are escaped unless a template marks them as safe."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined


def render_html(package: str, name: str, **values: Any) -> str:
    """Return an HTML page.

    Args:
        package: The package that contains the template.
        name: File name of the template (Jinja2).
        **values: Variables of the template. A missing one is an error.

    Returns:
        The page, with every value escaped.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(files(package).joinpath(name).read_text(encoding="utf-8")).render(**values)
