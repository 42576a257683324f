"""LightGBM's text of trees, checked before LightGBM reads it: its parser and its prediction follow every index without a look.

The format is that of ``Booster.model_to_string`` (LightGBM's ``gbdt_model_text.cpp`` and ``tree.cpp``), in the part that this plugin
writes: constant leaves, no average over trees, no constraints. Whatever else stands there is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import inf, isfinite

from zoo.plugin import PluginError

LARGEST = 1 << 29
"""Bytes of one text."""
MOST_TREES = 1_000_000
MOST_LEAVES = 131_072
"""LightGBM's own bound."""
DEEPEST = 1_000
"""Splits above a leaf: LightGBM recurses into trees, and explaining one takes memory by the square of its depth."""

_HEADER = ("tree", "version", "num_class", "num_tree_per_iteration", "label_index", "max_feature_idx")
_TREE = (
    *("num_leaves", "num_cat", "split_feature", "split_gain", "threshold", "decision_type", "left_child", "right_child"),
    *("leaf_value", "leaf_weight", "leaf_count", "internal_value", "internal_weight", "internal_count"),
    *("cat_boundaries", "cat_threshold", "is_linear", "shrinkage"),
)
_WHOLE = re.compile(r"-?[0-9]{1,10}")
_REAL = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?(e[+-]?[0-9]{1,3})?|-?inf|-?nan")
_INFO = re.compile(r"none|\[(?:[0-9.e+:-]|inf){1,80}\]|-?[0-9]{1,10}(:-?[0-9]{1,10})*")
_IMPORTANCE = re.compile(r"Column_([0-9]{1,9})=[0-9]{1,9}")
_PARAMETER = re.compile(r"\[[a-z0-9_]{1,60}: [A-Za-z0-9_.,:+-]*\]")
_TAIL = "end of trees\n\nfeature_importances:\n"
_END = "\nend of parameters\n\npandas_categorical:null\n"


def check(text: str, columns: int, width: int, objective: str) -> None:
    """Raise PluginError unless it is the text of a model of ``width`` trees a round over so many table columns.

    Every index is inside its array, every tree is one tree, leaves are finite, and sizes are those that are stated. Thresholds are numbers;
    inf is one, which LightGBM writes where a split parts the rows with a value from those without.
    objective: as LightGBM writes it, or empty for a loss of our own.
    """
    if len(text) > LARGEST or not text.isascii():
        raise _refused(f"it has {len(text)} characters, some perhaps not ASCII; expected at most {LARGEST} of ASCII")
    head, blank, rest = text.partition("\n\n")
    sizes = _sizes(head.split("\n"), columns, width, objective)
    at = 0
    for number, size in enumerate(sizes):
        _check_tree(number, rest[at : at + size], columns)
        at += size
    if not blank or not rest.startswith(_TAIL, at):
        raise _refused(f"after {len(sizes)} trees stands {rest[at : at + 40]!r}, expected {_TAIL!r}")
    _check_tail(rest[at + len(_TAIL) :], columns)


def _refused(what: str) -> PluginError:
    return PluginError(f"the trees are not what gbdt writes: {what}; restore the artefact from a backup, or train again")


def _sizes(lines: Sequence[str], columns: int, width: int, objective: str) -> list[int]:
    """How many characters each tree has, by the header."""
    names = [*_HEADER, *(["objective"] if objective else []), "feature_names", "feature_infos", "tree_sizes"]
    found = [line.partition("=") for line in lines]
    if [name for name, _, _ in found] != names:
        raise _refused(f"its header has {[name[:40] for name, _, _ in found[:20]]}, expected {names}")
    header = {name: value for name, _, value in found}
    stated = {name: header[name] for name in _HEADER[1:]} | ({"objective": header["objective"]} if objective else {})
    expected = {"version": "v4", "num_class": str(width), "num_tree_per_iteration": str(width), "label_index": "0"}
    expected |= {"max_feature_idx": str(columns - 1)} | ({"objective": objective} if objective else {})
    if lines[0] != "tree" or stated != expected:
        raise _refused(f"its header says {str(stated)[:300]}, expected {expected}")
    if header["feature_names"] != " ".join(f"Column_{number}" for number in range(columns)):
        raise _refused(f"its feature_names are not Column_0 to Column_{columns - 1}")
    infos = header["feature_infos"].split(" ")
    if len(infos) != columns or not all(map(_INFO.fullmatch, infos)):
        raise _refused(f"its feature_infos are {len(infos)}, or one is no range of values; expected {columns}")
    sizes = _whole("tree_sizes", header["tree_sizes"], None, 1, LARGEST)
    if len(sizes) > MOST_TREES or len(sizes) % width:
        raise _refused(f"it has {len(sizes)} trees, expected a multiple of {width} and at most {MOST_TREES}")
    return sizes


def _check_tree(number: int, text: str, columns: int) -> None:
    lines = text.split("\n")
    found = [line.partition("=") for line in lines[1:-3]]
    names = [name for name, _, _ in found]
    values = {name: value for name, _, value in found}
    (leaves,) = _whole("num_leaves", values.get("num_leaves", ""), 1, 1, MOST_LEAVES)
    (categorical,) = _whole("num_cat", values.get("num_cat", ""), 1, 0, leaves)
    expected = [name for name in _TREE if categorical or not name.startswith("cat_")]
    if lines[0] != f"Tree={number}" or lines[-3:] != ["", "", ""] or names != expected:
        raise _refused(f"tree {number} has {[name[:40] for name in [lines[0], *names][:30]]}, expected {expected}")
    splits = leaves - 1
    _whole("split_feature", values["split_feature"], splits, 0, columns - 1)
    kinds = _whole(
        "decision_type", values["decision_type"], splits, 0, 11
    )  # 1: category, 2: missing goes left, 4 and 8: what is missing
    thresholds = _real("threshold", values["threshold"], splits)
    if not all(each > -inf for each in thresholds):
        raise _refused(f"tree {number} has a threshold that is no number, or below every number")
    _real("leaf_value", values["leaf_value"], leaves, finite=True)
    _real("shrinkage", values["shrinkage"], 1, finite=True)
    for name, length in (
        ("split_gain", splits),
        ("internal_value", splits),
        ("internal_weight", splits),
        ("leaf_weight", leaves),
    ):
        # a stump's leaf has neither weight nor count of rows
        _real(name, values[name], length if splits or values[name] else 0)
    for name, length in (("internal_count", splits), ("leaf_count", leaves)):
        _whole(name, values[name], length if splits or values[name] else 0, 0, 2**31 - 1)
    if values["is_linear"] != "0":
        raise _refused(f"tree {number} has is_linear={values['is_linear'][:40]}, expected constant leaves (0)")
    children = [_whole(name, values[name], splits, -leaves, splits - 1) for name in ("left_child", "right_child")]
    _check_shape(number, list(zip(*children, strict=True)), leaves)
    _check_categories(number, [t for t, kind in zip(thresholds, kinds, strict=True) if kind & 1], categorical, values)


def _check_shape(number: int, children: Sequence[tuple[int, int]], leaves: int) -> None:
    """Every split but the first, and every leaf (~leaf), is the child of one split before it."""
    depth = {0: 1}
    for split, pair in enumerate(children):
        for child in pair:
            if child in depth or 0 <= child <= split:
                raise _refused(f"tree {number} reaches {child} twice, or from split {split} behind it; expected a tree")
            depth[child] = depth[split] + 1 if split in depth else 0
        if split not in depth or depth[split] > DEEPEST:
            raise _refused(f"tree {number}: split {split} hangs on nothing, or deeper than {DEEPEST}; expected a tree")
    if children and len(depth) != len(children) + leaves:
        raise _refused(f"tree {number} reaches {len(depth)} splits and leaves, expected {len(children) + leaves}")


def _check_categories(number: int, thresholds: Sequence[float], sets: int, values: dict[str, str]) -> None:
    """A split on categories names a set of them, which is a range of 32-bit words; each set is there for one split."""
    if sorted(thresholds) != list(range(sets)):
        raise _refused(f"tree {number} has {len(thresholds)} splits on categories that name sets which are not the {sets} stated")
    if sets:
        words = _whole("cat_threshold", values["cat_threshold"], None, 0, 2**32 - 1)
        bounds = _whole("cat_boundaries", values["cat_boundaries"], sets + 1, 0, len(words))
        if bounds[0] != 0 or bounds[-1] != len(words) or any(a >= b for a, b in pairwise(bounds)):
            raise _refused(f"tree {number} has cat_boundaries that do not rise from 0 to the {len(words)} words of cat_threshold")


def _check_tail(text: str, columns: int) -> None:
    """Importances and parameters, which nothing here reads and LightGBM parses."""
    importances, found, parameters = text.partition("\nparameters:\n")
    for line in importances.splitlines():
        match = _IMPORTANCE.fullmatch(line)
        if match is None or int(match[1]) >= columns:
            raise _refused(f"a feature importance is {line[:60]!r}, expected Column_0=1 and its like")
    if not found or not parameters.endswith(_END):
        raise _refused(f"it ends with {text[-60:]!r}, expected parameters and {_END!r}")
    for line in parameters.removesuffix(_END).splitlines():
        if not _PARAMETER.fullmatch(line):
            raise _refused(f"a parameter is {line[:80]!r}, expected [name: value] of letters, digits and -.,:+_")


def _parts(name: str, text: str, count: int | None, form: re.Pattern[str]) -> Iterator[str]:
    parts = text.split(" ") if text else []
    if count is not None and len(parts) != count:
        raise _refused(f"{name} has {len(parts)} values, expected {count}")
    for part in parts:
        if not form.fullmatch(part):
            raise _refused(f"{name} holds {part[:40]!r}, expected a number")
        yield part


def _whole(name: str, text: str, count: int | None, low: int, high: int) -> list[int]:
    values = [int(part) for part in _parts(name, text, count, _WHOLE)]
    outside = next((value for value in values if not low <= value <= high), None)
    if outside is not None:
        raise _refused(f"{name} holds {outside}, expected {low} to {high}")
    return values


def _real(name: str, text: str, count: int, *, finite: bool = False) -> list[float]:
    values = [float(part) for part in _parts(name, text, count, _REAL)]
    if finite and not all(map(isfinite, values)):
        raise _refused(f"{name} holds a value that is not finite")
    return values
