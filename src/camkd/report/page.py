"""Render the HTML templates of the reports."""

from __future__ import annotations

from functools import cache
from typing import Any

import jinja2


def render_page(template: str, **context: Any) -> str:
    """Render a template as HTML.

    Args:
        template: Name of a file in ``camkd/report/templates``.
        **context: Variables of the template. Values are HTML-escaped unless they are ``Markup``.

    Returns:
        The page.
    """
    return _environment().get_template(template).render(context)


def read_template(name: str) -> str:
    """Return the source of a template file, unrendered."""
    loader = _environment().loader
    assert loader is not None
    source, _, _ = loader.get_source(_environment(), name)
    return source


@cache
def _environment() -> jinja2.Environment:
    loader = jinja2.PackageLoader("camkd.report")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return environment
