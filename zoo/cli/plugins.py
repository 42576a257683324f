"""Commands about plugins: ``plugins`` lists them, ``plugin check`` proves that one keeps the contract."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.state import Json, State, plugin_commands, state
from zoo.errors import PluginError, UsageError, choices

if TYPE_CHECKING:
    from rich.console import Console

    from zoo.contract import ModelPlugin


def plugins(ctx: typer.Context, as_json: Json = False) -> None:
    """List plugins, models and tasks.

    With each installed plugin, the distribution that brought it and the commands that it adds. Where one is broken, the list says
    what is installed and the command ends with that error.
    """
    from zoo.manager import installed

    own = state(ctx)
    root: Any = ctx.find_root().command
    document: dict[str, Any] = {"plugins": [{**asdict(e), "left_out": e.name in own.without} for e in installed()]}
    broken: PluginError | None = None
    try:
        loaded = own.plugins
        commands = plugin_commands(loaded, root.commands)
    except PluginError as error:
        broken = error
        document["error"] = str(error)
    else:
        for entry in document["plugins"]:
            entry["commands"] = sorted(name for name, (_, plugin) in commands.items() if plugin == entry["name"])
        document["models"] = [
            {
                "name": name,
                "distribution": model.distribution,
                "version": model.version,
                "targets": sorted(model.plugin.spec.targets),
                "summary": model.plugin.spec.summary,
            }
            for name, model in loaded.models.items()
        ]
        document["tasks"] = [
            {"name": name, "entities": list(task.entities), "target": task.target.kind, "summary": task.summary}
            for name, task in loaded.tasks.items()
        ]
    own.answer(as_json, document, lambda console: _listed(console, document))
    if broken is not None:
        raise broken


def _listed(console: Console, document: dict[str, Any]) -> None:
    from zoo.cli.render import table

    rows = [
        (e["name"], e["distribution"], e["version"], "left out" if e["left_out"] else e["value"], e.get("commands") or None)
        for e in document["plugins"]
    ]
    console.print(table("Plugins", ["name", "distribution", "version", "module", "commands"], rows))
    if "models" in document:
        models = [(m["name"], m["distribution"], m["targets"], m["summary"]) for m in document["models"]]
        console.print(table("Models", ["name", "distribution", "targets", "what it is"], models))
        tasks = [(t["name"], t["entities"], t["target"], t["summary"]) for t in document["tasks"]]
        console.print(table("Tasks", ["name", "a row is", "target", "question"], tasks))


def check(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A model, or a plugin or distribution with several.", metavar="NAME")],
    as_json: Json = False,
) -> None:
    """Run the conformance kit on a model.

    Whatever zoo relies on is tried on toy data. Exits with 1 where a check fails.
    """
    from zoo.testing import checks, run_check

    own = state(ctx)
    results = []
    with own.progress(f"check {name}") as say:
        for model in _models(own, name):
            every = list(checks(model))
            for at, (what, one) in enumerate(every):
                say(at / len(every), f"{model.spec.name}: {what}")
                results.append({"model": model.spec.name, **asdict(run_check(what, one))})
    failed = [r for r in results if not r["ok"]]

    def human(console: Console) -> None:
        from zoo.cli.render import table

        rows = [
            (r["model"], r["name"], "ok" if r["ok"] else "FAILED", f"{r['seconds']:.2f}", r["message"] or None) for r in results
        ]
        console.print(table(f"Contract of {name}", ["model", "check", "result", "seconds", "seen and expected"], rows))
        console.print(f"{len(results) - len(failed)} of {len(results)} checks passed")

    own.answer(as_json, {"ok": not failed, "checks": results}, human)
    if failed:
        raise typer.Exit(1)


def _models(own: State, name: str) -> list[ModelPlugin]:
    """All models of the plugin or distribution of that name, loaded without any other plugin; else the model of that name."""
    from zoo.manager import installed, plugins

    entries = installed()
    chosen = [entry.name for entry in entries if name in (entry.name, entry.distribution) and entry.name not in own.without]
    if not chosen:
        if name not in own.plugins.models:
            raise UsageError(choices("model or plugin", name, {*own.plugins.models, *(entry.name for entry in entries)}))
        return [own.plugins.models[name].plugin]
    found = plugins(without=[entry.name for entry in entries if entry.name not in chosen]).models.values()
    if not found:
        raise PluginError(f"plugin {name!r} adds no model, so there is nothing to check; it may add tasks, folds or commands")
    return [model.plugin for model in found]
