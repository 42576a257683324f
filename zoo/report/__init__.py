"""One version on one page: how good it is and how sure that is, what it is made of, and what it was made from."""

from __future__ import annotations

from zoo.report import acting, facts, inside, quality
from zoo.report.markup import page, tag
from zoo.report.run import Run

__all__ = ["SECTIONS", "Run", "render"]

SECTIONS = {
    "Leaderboard": quality.leaderboard,
    "Calibration": quality.calibration,
    "Lift and gain": quality.gains,
    "Decisions": acting.decisions,
    "Uplift": acting.uplift,
    "Slices": quality.slices,
    "Stack weights": inside.weights,
    "Cost and quality": inside.costs,
    "Importance": inside.importance,
    "Data": facts.data,
    "Drift": facts.drift,
    "Leak guards": facts.guards,
    "How it was made": facts.made,
}
"""Title -> what draws the section, or None where the run has nothing for it."""


def render(run: Run) -> str:
    """A self-contained HTML page: no script, nothing loaded from anywhere, light or dark as the reader's system is."""
    made = {title: section(run) for title, section in SECTIONS.items()}
    there = {title: content for title, content in made.items() if content}
    away = [title.lower() for title, content in made.items() if not content]
    named = {title: title.lower().replace(" ", "-") for title in there}
    head = [tag("h1", run.title)]
    if run.about:
        head.append(tag("p", " · ".join(f"{name} {value}" for name, value in run.about.items()), class_="faint"))
    menu = tag("nav", *(tag("a", title, href=f"#{named[title]}") for title in there))
    parts = [tag("section", tag("h2", title, id=named[title]), content) for title, content in there.items()]
    if away:
        parts.append(tag("p", f"This run keeps nothing for: {', '.join(away)}.", class_="faint"))
    return page(f"{run.title}: report", *head, menu, *parts)
