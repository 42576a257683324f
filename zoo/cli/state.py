"""What every command shares: the project, the plugins, and where answers, errors and progress go."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from typer.core import TyperCommand, TyperGroup

from zoo.cli import INTERRUPTED, stopped
from zoo.errors import PluginError, UsageError, ZooError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rich.console import Console

    from zoo.contract import Progress
    from zoo.manager import Plugins
    from zoo.project import Project

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


@dataclass
class State:
    """The global options, and what is opened at most once a command. out: where the command's answer goes."""

    repo: Path | None = None
    without: tuple[str, ...] = ()
    traceback: bool = False
    out: TextIO = field(default_factory=lambda: sys.stdout)

    @property
    def root(self) -> Path:
        """The project's folder: ``--repo``, else the current folder if it is a project, else ``feature_repo`` in it."""
        if self.repo is not None:
            return self.repo
        here = Path()
        return here if (here / "zoo.toml").is_file() or not (here / "feature_repo/zoo.toml").is_file() else here / "feature_repo"

    @cached_property
    def project(self) -> Project:
        from zoo.project import Project

        return Project.open(self.root)

    @cached_property
    def plugins(self) -> Plugins:
        """Every installed plugin, loaded, but those of ``--without``."""
        from zoo.manager import plugins

        return plugins(without=self.without)

    @property
    def console(self) -> Console:
        """For the command's answer."""
        from zoo.cli.render import console

        return console(self.out)

    def answer(self, as_json: bool, document: Mapping[str, Any], human: Callable[[Console], None]) -> None:
        """Print the command's one answer: the document as JSON, or what ``human`` prints."""
        if as_json:
            self.document(document)
        else:
            human(self.console)

    def document(self, document: Mapping[str, Any]) -> None:
        """Print the command's answer as JSON."""
        print(json.dumps(plain(document), ensure_ascii=False, indent=2), file=self.out, flush=True)

    def command(self, words: str) -> str:
        """A command to print as the next one, of the project that this one was given: ``zoo --repo shop promote churn@1``."""
        return f"zoo {words}" if self.repo is None else f"zoo --repo {shlex.quote(str(self.repo))} {words}"

    def progress(self, title: str) -> AbstractContextManager[Progress]:
        """A progress bar on stderr."""
        from zoo.cli.render import progress_bar

        return progress_bar(title)


def plain(value: Any) -> Any:
    """The value as JSON holds it: a number that is not finite becomes null, instants become ISO 8601."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(each) for each in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime):
        return value.isoformat()
    return value if value is None or isinstance(value, (str, bool, int)) else str(value)


def state(ctx: Any) -> State:
    """The state of the command that runs, made from the global options when it is first asked for."""
    root = ctx.find_root()
    if not isinstance(root.obj, State):
        given = root.params
        root.obj = State(given.get("repo"), tuple(given.get("without") or ()), bool(given.get("traceback")))
    found: State = root.obj
    return found


READS = frozenset(
    (
        "check-features",
        "explain",
        "forget",
        "item-vectors",
        "materialize",
        "predict",
        "recommend",
        "report",
        "serve",
        "train",
        "tune",
        "uplift",
    )
)
"""Commands that read what is applied, and evaluate no definitions."""


class ZooCommand(TyperCommand):
    """A command whose answer alone goes to stdout: what libraries, C code and child processes print meanwhile goes to stderr."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        # before typer says that there is no such option, for those of every command, which stand before it
        own = {opt for each in self.params for opt in each.opts}
        shared = {opt: each for each in ctx.find_root().command.params for opt in each.opts if opt not in own}
        names = [each.partition("=")[0] for each in takewhile(lambda each: each != "--", args)]
        name = next((each for each in names if each in shared), None)
        if name is not None:
            ctx.fail(
                f"{name} stands before the command, as in: zoo {name} {shared[name].metavar or ''}".rstrip() + f" {ctx.info_name}"
            )
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with _answers_only() as out, _feast_unchecked() if ctx.info_name in READS else contextlib.nullcontext():
            state(ctx).out = out
            return super().invoke(ctx)


@contextlib.contextmanager
def _feast_unchecked() -> Iterator[None]:
    """Feast is imported here without checks of its callers' types: ``typeguard`` writes them into the source of its classes anew in each
    process, which takes as long as all else of the import. They help who writes definitions, which these commands do not evaluate.
    """
    import typeguard

    kept = typeguard.typechecked

    def others_only(target: Any = None, **more: Any) -> Any:
        return target if (getattr(target, "__module__", None) or "").partition(".")[0] == "feast" else kept(target, **more)

    typeguard.typechecked = others_only
    try:
        yield
    finally:
        typeguard.typechecked = kept


@contextlib.contextmanager
def _answers_only() -> Iterator[TextIO]:
    out = sys.stdout
    if out is not sys.__stdout__ or out is None:  # a test's or a notebook's stream, which no file descriptor stands for
        with contextlib.redirect_stdout(sys.stderr):
            yield out
        return
    out.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with (
            os.fdopen(os.dup(kept), "w", encoding=out.encoding, errors=out.errors) as answers,
            contextlib.redirect_stdout(sys.stderr),
        ):
            yield answers
    finally:
        os.dup2(kept, 1)
        os.close(kept)


class ZooGroup(TyperGroup):
    """The commands of zoo, and those of plugins, which are loaded only when a command is asked for that zoo does not have.

    So ``zoo --help`` and a command of zoo's own pay for no plugin's import; the help cannot list plugins' commands, ``zoo plugins``
    does. Errors become one paragraph on stderr and an exit code: 1 could not, 2 misused, 130 interrupted.
    """

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = super().get_command(ctx, cmd_name)
        if found is None and ctx.parent is None and not ctx.resilient_parsing:
            found = plugin_commands(state(ctx).plugins, self.commands).get(cmd_name, (None, ""))[0]
        return found

    def invoke(self, ctx: Any) -> Any:
        if ctx.parent is not None:
            return super().invoke(ctx)
        try:
            if signal.getsignal(signal.SIGINT) is stopped:  # from here on what is under way is ended in order
                signal.signal(signal.SIGINT, signal.default_int_handler)
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _say("interrupted: what was finished before is kept, and the same command may be given again")
            raise typer.Exit(INTERRUPTED) from None
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if hasattr(error, "exit_code"):  # typer's own: a wrong option or argument
                raise
            if state(ctx).traceback:
                traceback.print_exception(error)
            if not isinstance(error, ZooError):
                _say(
                    f"{type(error).__name__}: {error}. zoo or a plugin did not expect this; "
                    "the same command with --traceback, as in `zoo --traceback train churn`, shows where it happened"
                )
                raise typer.Exit(1) from error
            _say(str(error))
            raise typer.Exit(2 if isinstance(error, UsageError) else 1) from error


def _say(text: str) -> None:
    width = os.get_terminal_size(2).columns if sys.stderr.isatty() else 0
    paragraph = " ".join(text.split())
    print(textwrap.fill(f"zoo: {paragraph}", width) if width > 20 else f"zoo: {paragraph}", file=sys.stderr, flush=True)


def plugin_commands(plugins: Plugins, taken: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """Name -> (command, plugin's name) of what plugins add through ``zoo_commands``.

    Raises PluginError for a hook that fails and for a name that zoo or another plugin has.
    """
    from typer.main import get_group

    out: dict[str, tuple[Any, str]] = {}
    for impl in sorted(plugins.hook.zoo_commands.get_hookimpls(), key=lambda impl: impl.plugin_name):
        remedy = f"mend it, or leave it out with `zoo --without {impl.plugin_name}`"
        cli = typer.Typer(rich_markup_mode=None)
        try:
            impl.function(**({"cli": cli} if "cli" in impl.argnames else {}))
            found = dict(get_group(cli).commands)
        except Exception as error:
            raise PluginError(
                f"plugin {impl.plugin_name!r} failed in zoo_commands: {type(error).__name__}: {error}; {remedy}"
            ) from error
        for name, command in found.items():
            if name in taken or name in out:
                holder = "zoo itself" if name in taken else f"plugin {out[name][1]!r}"
                raise PluginError(f"plugin {impl.plugin_name!r} adds a command {name!r}, which {holder} has; {remedy}")
            out[name] = (command, impl.plugin_name)
    return out
