"""Plots as inline SVG: lines and dots over two axes, intervals beside names, bars beside names. Colours are the page's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from zoo.report.markup import Markup, joined, tag

WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 44
ROW = 24
COLOURS = 6


@dataclass(frozen=True)
class Series:
    """Points (x, y) under a name. low, high: an interval of y at each point. line: whether they are joined. rule: a dashed line only."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    line: bool = True
    dots: bool = True
    rule: bool = False


def figure(name: str, caption: str, drawing: Markup, width: float, height: float, names: Sequence[str] = ()) -> Markup:
    """A plot with its caption and legend; ``name`` marks it for whoever looks for it."""
    label = tag("title", caption)
    svg = tag("svg", label, drawing, viewBox=f"0 0 {width} {height}", role="img", data_plot=name)
    keys = [tag("li", tag("i", class_=f"k{at % COLOURS}"), each) for at, each in enumerate(names)]
    return tag("figure", svg, tag("ul", *keys, class_="legend") if keys else None, tag("figcaption", caption))


def curves(
    name: str,
    caption: str,
    series: Sequence[Series],
    x: str,
    y: str,
    *,
    x_from: float | None = None,
    y_from: float | None = None,
    whole: bool = False,
) -> Markup:
    """Series over two axes; the axes begin at ``x_from`` and ``y_from`` where given, else where the points do. whole: x counts."""
    drawn = [each for each in series if any(map(_finite, each.y))]
    xs = [v for each in drawn for v in each.x if _finite(v)]
    ys = [v for each in drawn for part in (each.y, each.low, each.high) for v in part if _finite(v)]
    if not xs or not ys:
        return tag("p", "Nothing to draw.", class_="faint")
    across, up = Axis.of(xs, LEFT, WIDTH - RIGHT, x_from, whole=whole), Axis.of(ys, HEIGHT - BOTTOM, TOP, y_from)
    parts = [*_grid(across, up, x, y)]
    number = 0
    for each in drawn:
        if each.rule:
            points = _points(each, across, up)
            parts.append(tag("polyline", points=points, class_="rule", fill="none"))
            continue
        own = number % COLOURS
        number += 1
        if each.low:
            edge = [(a, b) for a, b in zip(each.x, each.low, strict=True) if _finite(b)]
            back = [(a, b) for a, b in zip(each.x, each.high, strict=True) if _finite(b)][::-1]
            if each.line:
                area = " ".join(f"{across.at(a):.1f},{up.at(b):.1f}" for a, b in edge + back)
                parts.append(tag("polygon", points=area, class_=f"b{own}"))
            else:
                parts += [
                    tag("line", x1=_n(across.at(a)), x2=_n(across.at(a)), y1=_n(up.at(low)), y2=_n(up.at(high)), class_=f"s{own}")
                    for a, low, high in zip(each.x, each.low, each.high, strict=True)
                    if _finite(low) and _finite(high)
                ]
        if each.line:
            parts.append(tag("polyline", points=_points(each, across, up), class_=f"s{own}"))
        if each.dots:
            parts += [
                tag(
                    "circle",
                    tag("title", f"{each.name}: {a:.4g}, {b:.4g}"),
                    cx=_n(across.at(a)),
                    cy=_n(up.at(b)),
                    r=4,
                    class_=f"f{own}",
                )
                for a, b in zip(each.x, each.y, strict=True)
                if _finite(b)
            ]
    return figure(name, caption, joined(parts), WIDTH, HEIGHT, [each.name for each in drawn if not each.rule])


def intervals(
    name: str, caption: str, rows: Sequence[tuple[str, float | None, float | None, float | None]], x: str, *, zero: bool = False
) -> Markup:
    """A dot and its interval a row: (label, value, low, high). zero: draw where 0 is."""
    rows = [row for row in rows if row[1] is not None and _finite(row[1])]
    values = [v for _, *numbers in rows for v in numbers if v is not None and _finite(v)] + ([0.0] if zero else [])
    if not rows:
        return tag("p", "Nothing to draw.", class_="faint")
    wide, height = _names_width([label for label, *_ in rows]), ROW * len(rows) + BOTTOM + TOP
    axis = Axis.of(values, wide, WIDTH - RIGHT, None)
    parts = _ticks_below(axis, TOP, height - BOTTOM, x)
    if zero:
        parts.append(tag("line", x1=_n(axis.at(0)), x2=_n(axis.at(0)), y1=TOP, y2=height - BOTTOM, class_="rule"))
    for at, (label, value, low, high) in enumerate(rows):
        assert value is not None
        y = TOP + ROW * (at + 0.5)
        parts.append(tag("text", _short(label), x=_n(wide - 8), y=_n(y + 4), text_anchor="end"))
        if low is not None and high is not None:
            parts.append(tag("line", x1=_n(axis.at(low)), x2=_n(axis.at(high)), y1=_n(y), y2=_n(y), class_="s0"))
        parts.append(tag("circle", tag("title", f"{label}: {value:.4g}"), cx=_n(axis.at(value)), cy=_n(y), r=4, class_="f0"))
    return figure(name, caption, joined(parts), WIDTH, height)


def bars(name: str, caption: str, rows: Sequence[tuple[str, float]], x: str) -> Markup:
    """A bar from 0 a row: (label, value); those below 0 go to the left, in another colour."""
    rows = [row for row in rows if _finite(row[1])]
    if not rows:
        return tag("p", "Nothing to draw.", class_="faint")
    wide, height = _names_width([label for label, _ in rows]), ROW * len(rows) + BOTTOM + TOP
    values = [0.0, *(value for _, value in rows)]
    axis = Axis.of(values, wide, WIDTH - RIGHT, 0.0 if min(values) >= 0 else None)
    parts = _ticks_below(axis, TOP, height - BOTTOM, x)
    for at, (label, value) in enumerate(rows):
        y = TOP + ROW * at
        parts.append(tag("text", _short(label), x=_n(wide - 8), y=_n(y + ROW / 2 + 4), text_anchor="end"))
        begin, end = sorted((axis.at(0), axis.at(value)))
        bar = {"x": _n(begin), "y": _n(y + 5), "width": _n(max(0.5, end - begin)), "height": ROW - 10}
        parts.append(tag("rect", tag("title", f"{label}: {value:.4g}"), **bar, class_="f0" if value >= 0 else "f1"))
    return figure(name, caption, joined(parts), WIDTH, height)


@dataclass(frozen=True)
class Axis:
    """From values to places. ticks: round values inside."""

    low: float
    high: float
    begin: float
    end: float
    ticks: tuple[float, ...]

    @staticmethod
    def of(values: Sequence[float], begin: float, end: float, least: float | None, *, whole: bool = False) -> Axis:
        low, high = min(values), max(values)
        low = low if least is None else min(low, least)
        room = (high - low) * 0.04 or abs(high) * 0.05 or 1.0
        low, high = (low if least is not None else low - room), high + room
        step = max(_round((high - low) / 7), 1.0 if whole else 0.0)
        first = math.ceil(low / step - 1e-9)
        ticks = tuple((first + at) * step for at in range(int((high - first * step) / step + 1e-9) + 1))
        return Axis(low, high, begin, end, ticks)

    def at(self, value: float) -> float:
        return self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin)

    def said(self, tick: float) -> str:
        return f"{tick:.6g}" if tick else "0"


def _round(step: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * each for each in (1.0, 2.0, 5.0, 10.0) if power * each >= step * (1 - 1e-9))


def _grid(across: Axis, up: Axis, x: str, y: str) -> list[Markup]:
    parts = _ticks_below(across, TOP, HEIGHT - BOTTOM, x)
    for tick in up.ticks:
        place = up.at(tick)
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=_n(place), y2=_n(place), class_="axis"))
        parts.append(tag("text", up.said(tick), x=LEFT - 6, y=_n(place + 4), text_anchor="end", class_="faint"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        tag("text", y, x=14, y=_n(middle), text_anchor="middle", transform=f"rotate(-90 14 {_n(middle)})", class_="faint")
    )
    return parts


def _ticks_below(axis: Axis, top: float, bottom: float, label: str) -> list[Markup]:
    parts = []
    for tick in axis.ticks:
        place = _n(axis.at(tick))
        parts.append(tag("line", x1=place, x2=place, y1=top, y2=bottom, class_="axis"))
        parts.append(tag("text", axis.said(tick), x=place, y=_n(bottom + 16), text_anchor="middle", class_="faint"))
    parts.append(tag("text", label, x=_n((axis.begin + axis.end) / 2), y=_n(bottom + 36), text_anchor="middle", class_="faint"))
    return parts


def _points(series: Series, across: Axis, up: Axis) -> str:
    return " ".join(f"{across.at(a):.1f},{up.at(b):.1f}" for a, b in zip(series.x, series.y, strict=True) if _finite(b))


def _names_width(labels: Sequence[str]) -> float:
    return min(250.0, 24 + 6.6 * max(len(_short(label)) for label in labels))


def _short(label: str) -> str:
    return label if len(label) <= 36 else f"{label[:35]}…"


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _n(value: float) -> str:
    return f"{value:.1f}"
