"""The tutorial on plugins, as a stranger works through it: docs/tutorial/plugin.md, file by file and command by command."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from environments import ROOT, Environment, build_wheel

PAGE = ROOT / "docs/tutorial/plugin.md"
FENCE = re.compile(
    r"(?:^`(?P<file>[^`\n]+)`(?P<end>, at its end)?:\n\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A fenced block of the page: the content of ``file``, or what is appended to it, or commands."""

    file: str
    append: bool
    text: str


def blocks() -> list[Block]:
    found = [Block(m["file"] or "", bool(m["end"]), m["text"]) for m in FENCE.finditer(PAGE.read_text())]
    assert len(found) == PAGE.read_text().count("```") / 2
    return found


def test_every_block_of_the_page_is_a_file_or_commands() -> None:
    assert [block.file for block in blocks() if block.file][:3] == [
        "make_shop.py",
        "zoo-habit/pyproject.toml",
        "zoo-habit/zoo_habit.py",
    ]
    commands = [line.split()[0] for block in blocks() if not block.file for line in block.text.splitlines()]
    assert set(commands) == {"python", "pip", "zoo"}


def test_a_strangers_plugin_is_listed_proven_and_trained_beside_ours(
    environment: Environment, wheels: dict[str, Path], tmp_path: Path
) -> None:
    """In an environment of wheels only, outside the repository's tree; nothing of the core knows the plugin."""
    environment.install(wheels["core"], wheels["gbdt"])
    place = tmp_path / "stranger"
    place.mkdir()
    said: list[tuple[str, str]] = []
    for block in blocks():
        if block.file:
            write(place / block.file, block)
        for line in [] if block.file else block.text.splitlines():
            said.append((line, carry_out(shlex.split(line), environment, place)))

    listed, proven, first, again, answer = (json.loads(find(said, *command)) for command in COMMANDS)
    assert [(m["name"], m["distribution"]) for m in listed["models"] if m["name"] == "habit"] == [("habit", "zoo-habit")]
    assert proven["ok"]
    assert {check["model"] for check in proven["checks"]} == {"habit"}
    assert f"{len(proven['checks'])} passed" in find(said, "python", "pytest")
    for trained in (first, again):
        assert set(trained["members"]) == {"gbdt", "habit"}
        assert trained["members"]["habit"]["auc"] > 0.8
        assert trained["stack"]["auc"] > 0.8
    assert (first["version"], again["version"]) == (1, 2)
    assert again["reused"] == ["gbdt"]
    (row,) = answer["rows"]
    assert row["user_id"] == 7
    assert all(0 < row[name] < 1 for name in ("score", "gbdt", "habit"))


COMMANDS = [("zoo", "plugins"), ("zoo", "plugin", "check"), ("zoo", "train"), ("zoo", "train", "again"), ("zoo", "predict")]


def write(path: Path, block: Block) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text((path.read_text() + "\n" if block.append else "") + block.text)


def carry_out(command: list[str], environment: Environment, place: Path) -> str:
    """Output of one command of the page; zoo's as JSON."""
    if command[:2] == ["pip", "install"]:  # the same, but that no registry is asked for what the build needs
        environment.install(build_wheel(place / command[2], place))
        return ""
    if command[0] == "zoo":
        command.append("--json")
    return environment.run(*command, cwd=place)


def find(said: list[tuple[str, str]], program: str, *words: str) -> str:
    """What the command with this program and these words printed; ``again`` asks for the last of several."""
    found = [out for line, out in said if line.split()[0] == program and set(words) - {"again"} <= set(line.split())]
    return found[-1 if "again" in words else 0]
