"""HTML that can't be broken out of: text is escaped unless it is markup that came from here."""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.resources
import re
from collections.abc import Mapping


class Html(str):
    """Markup, as opposed to text."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str) -> Html:
    """An element; children that are no ``Html`` are text.

    Args:
      tag: its name.
      *children: what it holds.
      **attributes: underscores stand for hyphens, but for one at the end, which is dropped: ``class_``.
    """
    given = "".join(
        f' {name.removesuffix("_").replace("_", "-")}="{html.escape(value)}"' for name, value in attributes.items()
    )
    return Html(f"<{tag}{given}>{join(*children)}</{tag}>")


def join(*children: str) -> Html:
    """Several pieces of markup or text, one after the other."""
    return Html("".join(child if isinstance(child, Html) else html.escape(child) for child in children))


def asset(name: str) -> str:
    """The text of a file that belongs to the pages."""
    return (importlib.resources.files("azjax.runs") / "assets" / name).read_text(encoding="utf-8")


def style_of(template: str) -> str:
    """What the style element of a page holds."""
    style = re.search(r"<style>(.*?)</style>", template, re.DOTALL)
    if style is None:
        raise RuntimeError("a page of azjax/runs/assets has no <style> element")
    return style.group(1)


def source(text: str) -> str:
    """A script or style as a Content-Security-Policy names it."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii") + "'"


def fill(template: str, values: Mapping[str, str]) -> str:
    """Every ``{{name}}`` replaced, in one pass, so that no value can smuggle in another placeholder."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match.group(1)], template)
