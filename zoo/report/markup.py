"""HTML and SVG as text in which everything is escaped that is not markup already."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

VOID = frozenset({"meta", "link", "br", "line", "rect", "circle", "path", "polyline", "polygon"})
"""Elements written without an end tag; those of SVG close themselves."""
SVG = frozenset({"line", "rect", "circle", "path", "polyline", "polygon"})


class Markup(str):
    """Text that is markup: ``tag`` takes it as it is and escapes all other text."""

    __slots__ = ()


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element. Attributes: ``class_`` is class, other underscores are hyphens, None leaves one out."""
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"' for key, value in attributes.items() if value is not None
    )
    if name in VOID and not children:
        return Markup(f"<{name}{said}{'/' if name in SVG else ''}>")
    return Markup(f"<{name}{said}>{joined(children)}</{name}>")


def joined(parts: Iterable[Any]) -> Markup:
    """The parts one after the other; text that is no markup is escaped, None is nothing."""
    return Markup("".join(part if isinstance(part, Markup) else escape(str(part)) for part in parts if part is not None))


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]], flagged: Iterable[int] = ()) -> Markup:
    """A table; numbers are to the right, rows whose number is flagged stand out."""
    marked = set(flagged)
    body = []
    for number, row in enumerate(rows):
        cells = [tag("td", *([each] if isinstance(each, Markup) else [said(each)]), class_=_class(each)) for each in row]
        body.append(tag("tr", *cells, class_="flag" if number in marked else None))
    return tag(
        "div", tag("table", tag("thead", tag("tr", *(tag("th", head) for head in heads))), tag("tbody", *body)), class_="wide"
    )


def _class(value: Any) -> str | None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return "number" if number or (isinstance(value, tuple) and len(value) in (2, 3)) else None


def said(value: Any) -> str:
    """A value as people read it: an interval of two numbers as ``low to high``, a dash for nothing."""
    if value is None or (isinstance(value, float) and value != value):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " to ".join(map(said, value))
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4f}" if 1e-4 <= abs(value) < 1e4 or value == 0 else f"{value:.3g}"
    return str(value)


STYLE = """
:root{--ground:#fff;--text:#1b1f24;--faint:#667080;--line:#d9dee5;--panel:#f6f8fa;--flag:#fdeceb;--flagtext:#a3261b;
--c0:#0072b2;--c1:#d55e00;--c2:#009e73;--c3:#b0578d;--c4:#a37500;--c5:#4a7fb0;color-scheme:light dark}
@media (prefers-color-scheme:dark){:root{--ground:#14171c;--text:#e6e9ee;--faint:#9aa5b4;--line:#343b46;--panel:#1c2128;
--flag:#3b1d1b;--flagtext:#ff9d92;--c0:#56b4e9;--c1:#ff9a57;--c2:#35d3a2;--c3:#e79cc6;--c4:#f0c33c;--c5:#a9cdf0}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:66rem;padding:1.5rem;background:var(--ground);color:var(--text);font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.7rem;margin:0}
h2{font-size:1.25rem;margin:2.5rem 0 .5rem;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:1.2rem 0 .3rem}
p,ul{max-width:46rem}
.faint{color:var(--faint)}
.wide{overflow-x:auto}
table{border-collapse:collapse;margin:.5rem 0;font-size:.88rem}
th,td{padding:.25rem .7rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th{color:var(--faint);font-weight:600}
td.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td:first-child{white-space:nowrap}
tr.flag td{background:var(--flag);color:var(--flagtext)}
code,pre{background:var(--panel);border-radius:4px;padding:.1rem .35rem;font-size:.85rem}
pre{padding:.7rem;overflow-x:auto}
nav{margin:1rem 0;font-size:.9rem}
nav a{margin-right:1rem;color:var(--c0)}
.plots{display:flex;flex-wrap:wrap;gap:1rem}
figure{margin:.5rem 0;flex:1 1 26rem;min-width:0;max-width:44rem}
figcaption{font-size:.85rem;color:var(--faint)}
svg{width:100%;height:auto;display:block}
svg text{fill:var(--text);font-size:12px;font-family:inherit}
svg text.faint{fill:var(--faint)}
.axis{stroke:var(--line);stroke-width:1}
.rule{stroke:var(--faint);stroke-dasharray:4 4}
.legend{list-style:none;padding:0;margin:.2rem 0;display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:.85rem}
.legend i{display:inline-block;width:.8rem;height:.8rem;border-radius:2px;margin-right:.35rem;vertical-align:-1px}
""" + "".join(
    f".s{n}{{stroke:var(--c{n});fill:none;stroke-width:2}}.f{n}{{fill:var(--c{n})}}.b{n}{{fill:var(--c{n});opacity:.18}}"
    f".legend .k{n}{{background:var(--c{n})}}"
    for n in range(6)
)
"""Light, and dark where the reader's system is."""


def page(title: str, *parts: Markup) -> str:
    """A whole page that loads nothing: its policy forbids scripts and every other source."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Markup(STYLE)),
    ]
    return "<!DOCTYPE html>\n" + tag("html", tag("head", *head), tag("body", tag("main", *parts)), lang="en") + "\n"
