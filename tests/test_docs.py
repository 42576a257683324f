"""Pages say what is there: links lead somewhere, snippets parse, what they import exists, and so do commands and options."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import shop

ROOT = Path(__file__).parents[1]
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("plugins/*/README.md")})
FENCE = re.compile(r"^( *)```([\w-]*)[^\n]*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
BENCHMARKS = {path.stem.removeprefix("bench_") for path in ROOT.glob("tests/benchmarks/bench_*.py")}
WRONG_ON_PURPOSE = ROOT / "docs/reference/bad-input.md"
"""The page of commands that are refused."""

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links to files that are not there, and to headings that no page has."""
    out = []
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            out.append(target)
    return out


def anchors(text: str) -> set[str]:
    """A page's headings as forges make links of them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def snippets(text: str, *languages: str) -> Iterator[str]:
    for match in FENCE.finditer(text):
        if match[2] in languages:
            yield "\n".join(line.removeprefix(match[1]) for line in match[3].splitlines())


def missing_imports(code: str) -> list[str]:
    """Names that a snippet imports from zoo or a plugin and that are not there."""
    out = []
    for node in ast.walk(ast.parse(code)):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and re.match(r"zoo(_(gbdt|recurrent|bert|neighbours|gpt))?(\.|$)", node.module)
        ):
            module = importlib.import_module(node.module)
            out += [f"{node.module}.{alias.name}" for alias in node.names if not hasattr(module, alias.name)]
    return out


def commands(text: str, program: str) -> Iterator[list[str]]:
    """Calls of a program in shell snippets and in `inline code`, as words; what follows a pipe or a comment is left out."""
    joined = (snippet.replace("\\\n", " ") for snippet in snippets(text, "", "sh", "shell", "bash", "console"))
    lines = [line.strip().removeprefix("$ ") for snippet in joined for line in snippet.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    for line in lines:
        for part in re.split(r"&&|\||;", line):
            if re.match(rf"{program}( |$)", part.strip()):
                yield shlex.split(part, comments=True)[1:]


def wrong_command(words: list[str]) -> str:
    """Why a call of zoo cannot be meant; empty if it can. Words in capitals or dots stand for something else."""
    from typer.main import get_command

    from zoo.cli.app import app

    command: Any = get_command(app)
    command.name = "zoo"
    pending = list(words)
    while pending:
        word = pending.pop(0)
        options = {"--help", "-h"} | {o: p for p in command.params for o in (*p.opts, *p.secondary_opts)}.keys()
        taking = {o for p in command.params for o in p.opts if not getattr(p, "is_flag", True)}
        if word.startswith("-"):
            name = word.partition("=")[0]
            if name not in options:
                return f"{command.name} has no option {name}"
            if name in taking and "=" not in word and pending:
                pending.pop(0)
        elif hasattr(command, "commands") and re.fullmatch(r"[a-z][\w-]*", word):
            if word not in command.commands:
                return f"no command {word!r} in {command.name}"
            command = command.commands[word]
    return ""


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page, page.read_text()) == []


@every_page
@pytest.mark.parametrize(("language", "parse"), [("python", ast.parse), ("toml", tomllib.loads), ("json", json.loads)])
def test_snippets_parse(page: Path, language: str, parse: Callable[[str], object]) -> None:
    for snippet in snippets(page.read_text(), language):
        parse(snippet)


@every_page
def test_what_snippets_import_is_there(page: Path) -> None:
    assert [name for snippet in snippets(page.read_text(), "python", "py") for name in missing_imports(snippet)] == []


@every_page
def test_commands_and_their_options_exist(page: Path) -> None:
    wrong = [why for words in commands(page.read_text(), "zoo") if (why := wrong_command(words))]
    assert bool(wrong) == (page == WRONG_ON_PURPOSE), wrong


@every_page
def test_make_targets_exist(page: Path) -> None:
    named = {word for words in commands(page.read_text(), "make") for word in words if re.fullmatch(r"[a-z-]+", word)}
    benchmarks = {name.removeprefix("bench-").replace("-", "_") for name in named if name.startswith("bench-")}
    assert {name for name in named if not name.startswith("bench-")} - TARGETS == set()
    assert benchmarks - BENCHMARKS == set()


def toy_columns() -> list[tuple[str, str, str]]:
    """Name, entity and kind of every column of the conformance kit's rows."""
    from zoo.testing import toy

    def kind(column: Any) -> str:
        one = f"code of `{column.dictionary}`" if column.is_code else "text" if column.is_text else "number"
        return f"sequence of {one.replace('code', 'codes').replace('number', 'numbers')}" if column.is_sequence else one

    return [(name, entity, kind(column)) for entity, block in toy(1).batch.blocks.items() for name, column in block.items()]


def test_the_pages_for_plugin_authors_list_the_columns_of_the_toy_rows() -> None:
    rows = [f"| `{name}` | {entity} | {kind} |" for name, entity, kind in toy_columns()]
    table = "\n".join(["| column | entity | kind |", "|---|---|---|", *rows])
    assert table in (ROOT / "docs/reference/hooks.md").read_text()
    listed = ", ".join(f"`{name}`" for name, _, _ in toy_columns())
    assert listed in " ".join((ROOT / "docs/tutorial/plugin.md").read_text().split())


def test_a_page_that_is_wrong_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A heading, `coded`\n")
    text = "[a](other.md) [b](none.md) [c](other.md#a-heading-coded) [d](other.md#none) [e](#none)\n\n`zoo trian x`\n"
    assert broken_links(tmp_path / "page.md", text.replace("[e](#none)", "")) == ["none.md", "other.md#none"]
    assert [wrong_command(words) for words in commands(text, "zoo")] == ["no command 'trian' in zoo"]
    assert missing_imports("from zoo.plugin import hookimpl, no_such_thing\n") == ["zoo.plugin.no_such_thing"]
    shell = "```sh\nzoo --repo shop train churn --wrokers 2 # a comment\nzoo --repo shop train TASK --workers 2\n```\n"
    assert [wrong_command(words) for words in commands(shell, "zoo")] == ["train has no option --wrokers", ""]


def test_the_bodies_that_the_readme_sends_are_requests() -> None:
    from zoo.service.messages import EventsRequest, PredictRequest

    kinds = {"predict": PredictRequest, "events": EventsRequest}
    sent = [words for words in commands((ROOT / "README.md").read_text(), "curl") if "-d" in words]
    found = [next(w for w in words if "/v1/" in w).rpartition("/")[2] for words in sent]
    assert sorted(found) == sorted(kinds)
    for kind, words in zip(found, sent):
        kinds[kind].model_validate_json(words[words.index("-d") + 1])


def python_of(page: str, word: str) -> str:
    """The one Python snippet of a page that holds a word."""
    (found,) = [snippet for snippet in snippets((ROOT / page).read_text(), "python") if word in snippet]
    return found


def test_the_feature_definitions_of_the_readme_are_a_feature_repository(tmp_path: Path) -> None:
    from zoo.events.log import EventLog
    from zoo.events.schema import LogSchema
    from zoo.features import Features, apply

    (tmp_path / "definitions.py").write_text(python_of("README.md", "FeatureView"))
    (tmp_path / "feature_store.yaml").write_text(shop.STORE)
    log = EventLog.create(tmp_path / "data/log", LogSchema())
    bought = {"user_id": 42, "item_id": 7, "event_type": "purchase"}
    log.append([{**bought, "time": shop.START + day * shop.DAY} for day in (0, 30, 31)], idempotency_key="readme")
    assert apply(tmp_path) == ("churn",)
    batch = Features.open(tmp_path).history("churn", {"user_id": [42], "time": [shop.START + 32 * shop.DAY]})
    assert batch.column("purchases_28d").values.tolist() == [2]
    assert batch.column("gaps").values.tolist()[1:] == [30 * 86_400, 86_400]
    assert batch.column("recency").values.tolist() == [86_400]


@pytest.mark.parametrize(("page", "repo"), [("README.md", "feature_repo"), ("docs/how-to/push-and-predict.md", "shop")])
def test_calling_the_predictor_as_the_pages_say_answers(
    page: str, repo: str, trained_shop: shop.Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_shop.copy(tmp_path / repo)
    monkeypatch.chdir(tmp_path)
    *statements, last = ast.parse(python_of(page, "Predictor")).body
    assert isinstance(last, ast.Expr)
    names: dict[str, Any] = {}
    exec(compile(ast.Module(statements, []), page, "exec"), names)
    answer = eval(compile(ast.Expression(last.value), page, "eval"), names)
    assert {"user_id", "score", "newest_event_age", "known", "version"} < set(answer.column_names)
    assert answer["known"].to_pylist() == [True] * len(answer)


def test_make_lists_every_target() -> None:
    listed = subprocess.run(["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split()[1] for line in listed.splitlines()} - {"bench-%"} == TARGETS
