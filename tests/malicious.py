"""Artefacts that no honest writer wrote, by what is wrong with them; each must be refused with an ArtefactError or a PluginError.

``FILES`` are wrong in what lies on the disk, each with the right hashes unless hashes are the point, as of someone who may write both
registry and folder. ``CONTENTS`` are wrong in what the files say.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable, Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from zoo.artefacts import ARRAYS, MANIFEST, ArtefactStore
from zoo.contract import Array, Artefact, Column, Target, TrainingData
from zoo.manager import Plugins, plugins
from zoo.stacking import Ensemble, Fitted
from zoo.testing import toy
from zoo.vocabulary import Vocabulary

GBDT = {
    "windows": (),
    "lasts": 0,
    "top_codes": 1,
    "num_trees": 3,
    "num_leaves": 4,
    "min_category_count": 2,
    "feature_fraction": 1.0,
}
RANKING = {"ease": {}, "itemknn": {}, "popularity": {}}
TREES = "members/gbdt/trees-0.txt"


@cache
def found() -> Plugins:
    return plugins(("bert", "gpt", "recurrent"))


def fitted(model: str, data: TrainingData, settings: Mapping[str, Any]) -> Fitted:
    registered = found().models[model]
    params = registered.plugin.spec.params().model_validate(settings)
    trained = registered.plugin.fit(data, params=params, seed=0, progress=lambda done, text: None)
    return Fitted(model, model, ("*",), registered.distribution, registered.version, 0.0, trained)


def rows(kind: str, names: tuple[str, ...]) -> TrainingData:
    data = toy(120, 0, kind)
    return TrainingData(data.batch.select(names), data.target, data.weight, data.time, data.kind)


@cache
def good() -> Artefact:
    """An ensemble of every model without torch. Nobody would stack them, but all are loaded."""
    binary, ranking = (
        rows("binary", ("user_spend_28d", "user_region", "items")),
        rows("ranking", ("items", "event_types", "ages")),
    )
    members = [fitted("gbdt", binary, GBDT), *(fitted(name, ranking, settings) for name, settings in RANKING.items())]
    scores = {f"score:{name}": Column(np.linspace(0.1, 0.9, len(binary))) for name in ("a", "b")}
    scored = binary.batch.with_block("members", scores)
    final = fitted("logistic", TrainingData(scored, binary.target, binary.weight, binary.time, binary.kind), {"strength": 1.0})
    return Ensemble(tuple(members), final, Vocabulary.fit(binary.batch), Target("binary")).save()


def load(artefact: Artefact) -> Ensemble:
    return Ensemble.load(artefact, found())


def files_of(artefact: Artefact) -> dict[str, bytes]:
    from zoo.artefacts import _files

    return _files(artefact)


def manifest_of(files: Mapping[str, bytes], **more: Any) -> bytes:
    entries = {name: {"sha256": sha256(content).hexdigest(), "size": len(content)} for name, content in files.items()}
    return json.dumps({"format": 1, "files": {**entries, **more}}).encode()


def forged(root: Path, files: Mapping[str, bytes], manifest: bytes | None = None) -> Path:
    """The folder of an artefact whose hashes are right, whatever its files say."""
    manifest = manifest_of(files) if manifest is None else manifest
    folder = root / sha256(manifest).hexdigest()
    for name, content in {MANIFEST: manifest, **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


# What is on the disk: (root of the store) -> digest to be read


def named(name: str, content: bytes = b"x") -> Callable[[Path], str]:
    """The manifest names this file, and a file of these bytes is wherever the name leads."""

    def make(root: Path) -> str:
        folder = forged(root, {}, manifest_of({name: content}))
        try:
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        except (OSError, ValueError):
            pass  # no such place can be
        return folder.name

    return make


def manifested(manifest: bytes) -> Callable[[Path], str]:
    return lambda root: forged(root, {}, manifest).name


def entry(**changed: Any) -> Callable[[Path], str]:
    """One file with an entry of the manifest as given."""
    right = {"sha256": sha256(b"x").hexdigest(), "size": 1}
    return lambda root: forged(root, {"texts/x.txt": b"x"}, manifest_of({}, **{"texts/x.txt": {**right, **changed}})).name


def packed(content: bytes) -> Callable[[Path], str]:
    """These bytes as the safetensors file."""
    return lambda root: forged(root, {ARRAYS: content}).name


def tensors(header: Any, body: bytes = b"", size: int | None = None) -> Callable[[Path], str]:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return packed(struct.pack("<Q", len(text) if size is None else size) + text + body)


def swapped(how: Callable[[Path, Path], None], of: str = "texts/x.txt") -> Callable[[Path], str]:
    """A whole artefact, of which one file was replaced: ``how(the file, a place outside the root)``."""

    def make(root: Path) -> str:
        folder = forged(root / "store", {"texts/x.txt": b"secret", "texts/y.json": b"{}"})
        outside = root / "outside"
        outside.mkdir()
        how(folder / of, outside)
        return str(folder.relative_to(root))

    return make


def moved_and_linked(path: Path, outside: Path) -> None:
    path.rename(outside / path.name)
    path.symlink_to(outside / path.name)


def replaced_by_pipe(path: Path, outside: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replaced_by_folder(path: Path, outside: Path) -> None:
    path.unlink()
    path.mkdir()


def replaced_by_device(path: Path, outside: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def one(dtype: str, shape: list[Any], start: int, end: int) -> dict[str, Any]:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}}


class Attack:
    """What a pickle would do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("/tmp/zoo-was-here",))


NAMES = {
    "a step up": "texts/../../secret", "a step up before": "../secret", "an absolute path": "/etc/hostname", "up within": "texts/a/../b",
    "encoded step up": "texts/%2e%2e/%2e%2e/secret", "encoded slash": "texts/..%2fsecret", "twice encoded": "texts/%252e%252e/secret",
    "wide dots": "texts/\uff0e\uff0e/secret", "backslashes": "texts\\..\\..\\secret", "a drive": "C:\\secret", "a URL": "file:///etc/hostname",
    "home": "~/secret", "a variable": "texts/$HOME", "zero byte": "texts/x\0.txt", "new line": "texts/x\n.txt", "nothing": "texts/",
    "doubled slash": "texts//x.txt", "a dot": "texts/./x.txt", "too long": f"texts/{'x' * 300}", "beside the arrays": "weights.safetensors",
    "its own manifest": MANIFEST, "an unlisted file beside": "model.pkl",
}  # fmt: skip
FORMATS = (
    *(
        "pkl",
        "pickle",
        "joblib",
        "dill",
        "yaml",
        "yml",
        "onnx",
        "onnx.data",
        "pt",
        "pth",
        "bin",
        "npy",
        "npz",
        "h5",
        "py",
        "so",
        "zip",
    ),
    *("tar.gz", "html", "msgpack"),
)
FILES: dict[str, Callable[[Path], str]] = {
    **{f"a file named by {what}": named(name) for what, name in NAMES.items()},
    **{f"a text in the format {ending}": named(f"texts/model.{ending}", pickle.dumps(Attack(), 0)) for ending in FORMATS},
    "digest with steps up": lambda root: "../" * 21 + "x",
    "digest encoded": lambda root: "%2e%2e%2f" + "0" * 55,
    "digest absolute": lambda root: str(forged(root, {"texts/x.txt": b"x"})),
    "digest in capitals": lambda root: forged(root, {"texts/x.txt": b"x"}).name.upper() + "A",
    "digest with zero byte": lambda root: forged(root, {"texts/x.txt": b"x"}).name + "\0",
    "a link to a file outside": swapped(moved_and_linked),
    "a link to the folder of texts outside": swapped(moved_and_linked, "texts"),
    "a link in place of the artefact": swapped(moved_and_linked, "."),
    "a link in place of the manifest": swapped(moved_and_linked, MANIFEST),
    "a link to a device": swapped(replaced_by_device),
    "a pipe that never ends": swapped(replaced_by_pipe),
    "a folder in place of a file": swapped(replaced_by_folder),
    "a file of a terabyte": swapped(lambda path, outside: os.truncate(path, 1 << 40)),
    "a manifest of a gigabyte": swapped(lambda path, outside: os.truncate(path, 1 << 30), MANIFEST),
    "a file cut short": swapped(lambda path, outside: os.truncate(path, 3)),
    "a file changed": swapped(lambda path, outside: path.write_bytes(b"Secret") and None),
    "a file gone": swapped(lambda path, outside: path.unlink()),
    "manifest of a list": manifested(b"[]"),
    "manifest of nothing": manifested(b""),
    "manifest in UTF-16": manifested('{"format":1,"files":{}}'.encode("utf-16")),
    "manifest nested deep": manifested(b'{"format":1,"files":' + b'{"a":' * 50_000 + b"}" * 50_001),
    "manifest with a number of 10,000 digits": manifested(b'{"format":' + b"9" * 10_000 + b',"files":{}}'),
    "manifest with files in a list": manifested(b'{"format":1,"files":["texts/x.txt"]}'),
    "manifest of another format": manifested(b'{"format":2,"files":{}}'),
    "manifest that is a pickle": manifested(pickle.dumps(Attack())),
    "manifest that is YAML": manifested(b"!!python/object/apply:os.mkdir [/tmp/zoo-was-here]"),
    "negative size": entry(size=-1),
    "size of half a byte": entry(size=0.5),
    "size beyond every limit": entry(size=1 << 62),
    "size in text": entry(size="1"),
    "hash in capitals": entry(sha256=sha256(b"x").hexdigest().upper()),
    "hash of something else": entry(sha256=sha256(b"y").hexdigest()),
    "hash that is a list": entry(sha256=["0" * 64]),
    "arrays that are a pickle": packed(pickle.dumps(Attack())),
    "arrays that are a zip": packed(b"PK\x03\x04" + b"\0" * 64),
    "arrays of nothing": packed(b""),
    "arrays cut in the header": packed(struct.pack("<Q", 500) + b'{"w":'),
    "header of 2**63 bytes": tensors({}, size=1 << 63),
    "header of 2**64 - 1 bytes": tensors({}, size=(1 << 64) - 1),
    "header of 101 MB": tensors(b"{" + b" " * 101_000_000 + b"}"),
    "header nested deep": tensors(b'{"a":' * 50_000 + b"}" * 50_000),
    "header that is no JSON": tensors(b"\xff" * 40),
    "header that is a list": tensors([]),
    "tensor beyond the file": tensors(one("F32", [4], 0, 16)),
    "tensor of 2**60 floats in 4 bytes": tensors(one("F32", [1 << 60], 0, 4), b"1234"),
    "tensor whose shape overflows": tensors(one("F32", [1 << 32, 1 << 32], 0, 4), b"1234"),
    "tensor of a negative shape": tensors(one("F32", [-1], 0, 4), b"1234"),
    "tensor that ends before it begins": tensors(one("F32", [1], 4, 0), b"1234"),
    "tensor of an unknown type": tensors(one("PICKLE", [1], 0, 4), b"1234"),
    "tensor of a type without a numpy": tensors(one("F8_E4M3", [4], 0, 4), b"1234"),
    "tensor of half bytes": tensors(one("F4", [8], 0, 4), b"1234"),
    "two tensors on the same bytes": tensors({**one("F32", [1], 0, 4), "v": one("F32", [1], 0, 4)["w"]}, b"1234"),
    "bytes that no tensor owns": tensors(one("F32", [1], 0, 4), b"12345678"),
    "tensor named by a step up": tensors({"../up": one("F32", [1], 0, 4)["w"]}, b"1234"),
    "tensor named by an absolute path": tensors({"/etc/x": one("F32", [1], 0, 4)["w"]}, b"1234"),
    "tensor with a name of zero bytes": tensors({"": one("F32", [1], 0, 4)["w"]}, b"1234"),
    "a text that is no Unicode": lambda root: forged(root, {"texts/x.txt": b"\xff\xfe"}).name,
}  # fmt: skip


def read(case: str, folder: Path) -> None:
    """Write the artefact of this case under the folder and read it, as a registry that names it would."""
    given = FILES[case](folder)
    root, _, digest = given.rpartition("/") if given.startswith("store/") else ("", "", given)
    ArtefactStore(folder / root).read(digest)


# What the files say: artefact -> artefact


def with_text(name: str, change: Callable[[str], str]) -> Callable[[Artefact], Artefact]:
    return lambda artefact: Artefact(artefact.arrays, {**artefact.texts, name: change(artefact.texts[name])})


def with_json(name: str, **changed: Any) -> Callable[[Artefact], Artefact]:
    return with_text(name, lambda text: json.dumps({**json.loads(text), **changed}))


def with_array(name: str, change: Callable[[Array], Array]) -> Callable[[Artefact], Artefact]:
    return lambda artefact: Artefact({**artefact.arrays, name: change(artefact.arrays[name])}, artefact.texts)


def without(name: str) -> Callable[[Artefact], Artefact]:
    return lambda a: Artefact({k: v for k, v in a.arrays.items() if k != name}, {k: v for k, v in a.texts.items() if k != name})


def sized(text: str) -> str:
    """The trees' text with tree_sizes as long as the trees are."""
    head, _, rest = text.partition("\n\n")
    sizes = [len(f"Tree={each}") for each in rest.partition("end of trees")[0].split("Tree=")[1:]]
    lines = [f"tree_sizes={' '.join(map(str, sizes))}" if line.startswith("tree_sizes=") else line for line in head.split("\n")]
    return "\n".join(lines) + "\n\n" + rest


def line(key: str, change: Callable[[list[str]], list[str]], *, tree: bool = True) -> Callable[[Artefact], Artefact]:
    """The first line of this key with other values; sizes are mended, so that they don't give it away."""

    def changed(text: str) -> str:
        head, _, rest = text.partition(f"\n{key}=")
        value, _, rest = rest.partition("\n")
        text = f"{head}\n{key}={' '.join(change(value.split(' ')))}\n{rest}"
        return sized(text) if tree else text

    return with_text(TREES, changed)


def first(value: object) -> Callable[[list[str]], list[str]]:
    return lambda values: [str(value), *values[1:]]


def chain(depth: int) -> Callable[[Artefact], Artefact]:
    """A tree as deep as it has splits."""

    def changed(text: str) -> str:
        head, _, rest = text.partition("\n\n")
        _, _, others = rest.partition("Tree=1")
        reals, wholes = " ".join(["1"] * depth), " ".join(["2"] * depth)
        values = {
            "num_leaves": depth + 1, "num_cat": 0, "split_feature": " ".join(["0"] * depth), "split_gain": reals, "threshold": reals,
            "decision_type": wholes, "left_child": " ".join([*map(str, range(1, depth)), "-1"]),
            "right_child": " ".join(str(-leaf) for leaf in range(2, depth + 2)), "leaf_value": f"{reals} 1", "leaf_weight": f"{reals} 1",
            "leaf_count": f"{wholes} 2", "internal_value": reals, "internal_weight": reals, "internal_count": wholes, "is_linear": 0,
            "shrinkage": 1,
        }  # fmt: skip
        return sized(f"{head}\n\nTree=0\n" + "".join(f"{k}={v}\n" for k, v in values.items()) + f"\n\nTree=1{others}")

    return with_text(TREES, changed)


def about(**changed: Any) -> Callable[[Artefact], Artefact]:
    """Of the first member's entry in ensemble.json."""

    def change(text: str) -> str:
        stated = json.loads(text)
        stated["members"][0] |= changed
        return json.dumps(stated)

    return with_text("ensemble.json", change)


def codes(**changed: Any) -> Callable[[Artefact], Artefact]:
    """Of the last sequence of codes in gbdt's layout."""

    def change(text: str) -> str:
        stated = json.loads(text)
        next(entity for entity in stated["entities"] if entity["code_sequences"])["code_sequences"][-1] |= changed
        return json.dumps(stated)

    return with_text("members/gbdt/layout.json", change)


def at(place: int, value: int) -> Callable[[Array], Array]:
    def change(array: Array) -> Array:
        array = array.copy()
        array[place] = value
        return array

    return change


DEEP = "[" * 200_000
MODEL, LAYOUT = "members/gbdt/model.json", "members/gbdt/layout.json"
KNN, EASE, POPULAR = "members/itemknn/", "members/ease/", "members/popularity/"
CONTENTS: dict[str, Callable[[Artefact], Artefact]] = {
    "a split whose left is itself": line("left_child", first(0)),
    "a split whose left is beyond the splits": line("left_child", first(1000)),
    "a split whose left is 2**31 - 1": line("left_child", first(2**31 - 1)),
    "a split whose right is a leaf beyond the leaves": line("right_child", first(-1000)),
    "a split whose right is -2**31": line("right_child", first(-(2**31))),
    "a split whose right is 2**32, which wraps to 0": line("right_child", first(2**32)),
    "two splits of one child": line("right_child", lambda values: [values[0]] * len(values)),
    "a split below itself": line("left_child", lambda values: [*values[:-1], "0"]),
    "children in hexadecimal": line("left_child", first("0x1")),
    "too few children": line("left_child", lambda values: values[:-1]),
    "too many children": line("left_child", lambda values: [*values, "-1"]),
    "a feature that the table has not": line("split_feature", first(100_000)),
    "a feature before the table": line("split_feature", first(-1)),
    "no leaves": line("num_leaves", first(0)),
    "fewer leaves than nothing": line("num_leaves", first(-5)),
    "2**31 leaves": line("num_leaves", first(2**31)),
    "one leaf more than there are": line("num_leaves", lambda values: [str(int(values[0]) + 1)]),
    "a threshold that is no number": line("threshold", first("nan")),
    "a threshold below everything": line("threshold", first("-inf")),
    "a threshold that is a word": line("threshold", first("one")),
    "a leaf that is no number": line("leaf_value", first("nan")),
    "a leaf of 10**999": line("leaf_value", first("1e999")),
    "a decision of an unknown type": line("decision_type", first(64)),
    "a split on categories that are not there": line("decision_type", first(1)),
    "a million sets of categories": line("num_cat", first(1_000_000)),
    "a set of categories where none is": line("num_cat", first(1)),
    "linear leaves": line("is_linear", first(1)),
    "a negative count": line("leaf_count", first(-1)),
    "a tree deeper than the stack": chain(20_000),
    "a tree of the wrong number": with_text(TREES, lambda text: text.replace("Tree=1\n", "Tree=7\n")),
    "sizes of trees before the text": line("tree_sizes", first(-4096), tree=False),
    "sizes of trees beyond the text": line("tree_sizes", first(10**9), tree=False),
    "sizes of trees that wrap": line("tree_sizes", first(2**64 - 1), tree=False),
    "sizes of trees that are shifted": line("tree_sizes", lambda values: [str(int(values[0]) + 1), *values[1:]], tree=False),
    "no sizes of trees": with_text(TREES, lambda text: text.replace("tree_sizes=", "tree_size=")),
    "more classes than scores": line("num_class", first(1000), tree=False),
    "more trees a round than scores": line("num_tree_per_iteration", first(1000), tree=False),
    "no trees a round": line("num_tree_per_iteration", first(0), tree=False),
    "an objective of 1,000 classes": line("objective", lambda _: ["multiclass", "num_class:1000"], tree=False),
    "an objective of a plugin": line("objective", lambda _: ["custom"], tree=False),
    "more features than the table": line("max_feature_idx", first(2**31 - 1), tree=False),
    "no features": line("max_feature_idx", first(-1), tree=False),
    "names of too few features": line("feature_names", lambda values: values[:-1], tree=False),
    "an average of trees": with_text(TREES, lambda text: text.replace("label_index=0", "average_output\nlabel_index=0")),
    "another version of the text": line("version", first("v2"), tree=False),
    "a key that gbdt does not write": with_text(TREES, lambda text: sized(text.replace("\nshrinkage", "\nleaf_parent=9 9 9 9\nshrinkage"))),
    "a key twice": with_text(TREES, lambda text: sized(text.replace("\nnum_cat", "\nnum_leaves=9\nnum_cat"))),
    "trees with a zero byte": with_text(TREES, lambda text: text.replace("Tree=1", "Tree=\0")),
    "trees that are not ASCII": with_text(TREES, lambda text: text.replace("Tree=1", "Tree=\u0661")),
    "trees cut in a tree": with_text(TREES, lambda text: text[: text.index("Tree=1") + 40]),
    "trees cut at their end": with_text(TREES, lambda text: text[:-30]),
    "trees of nothing": with_text(TREES, lambda _: ""),
    "trees that are a pickle": with_text(TREES, lambda _: pickle.dumps(Attack(), 0).decode()),
    "a parameter that is a path": with_text(TREES, lambda text: text.replace("[data: ]", "[data: /etc/passwd]")),
    "an importance of no feature": with_text(TREES, lambda text: text.replace("importances:\n", "importances:\nColumn_99999=1\n")),
    "categories of pandas": with_text(TREES, lambda text: text.replace("categorical:null", "categorical:[[1]]")),
    "trees that are missing": without(TREES),
    "more boosters than there are": with_json(MODEL, seeds=10**9),
    "boosters by a word": with_json(MODEL, seeds="1"),
    "scores wider than the trees": with_json(MODEL, width=10**9),
    "a kind of target that is not": with_json(MODEL, kind="pickle"),
    "a multiclass target of binary trees": with_json(MODEL, kind="multiclass", width=1000),
    "a share of nothing": with_json(MODEL, keep=[0, 1]),
    "a model.json with more": with_json(MODEL, model_class="os.system"),
    "a model.json nested deep": with_text(MODEL, lambda _: DEEP),
    "a model.json that is YAML": with_text(MODEL, lambda _: "!!python/object/apply:os.mkdir [/tmp/zoo-was-here]"),
    "a layout with a code of 2**62": codes(kept=[2**62]),
    "a layout with a code of half": codes(kept=[2.5]),
    "a layout with a code below nothing": codes(top=[-5]),
    "a layout of a billion columns": with_json(LAYOUT, windows=[1] * 1000, lasts=10**9),
    "a layout of no columns": with_json(LAYOUT, entities=[]),
    "a layout nested deep": with_text(LAYOUT, lambda _: DEEP),
    "similar items beyond the items": with_array(KNN + "indices", at(0, 10**6)),
    "similar items before the items": with_array(KNN + "indices", at(0, -1)),
    "rows of similar items that fall": with_array(KNN + "indptr", at(1, 10**6)),
    "rows of similar items before the first": with_array(KNN + "indptr", at(0, -1)),
    "rows of similar items beyond the last": with_array(KNN + "indptr", at(-1, 10**6)),
    "more similar items than weights": with_array(KNN + "data", lambda array: array[:-1]),
    "similar items in two dimensions": with_array(KNN + "indices", lambda array: array[None]),
    "weights of similar items that are not finite": with_array(KNN + "data", lambda array: array * np.nan),
    "no rows of similar items": with_array(KNN + "indptr", lambda array: array[:0]),
    "a linear item beyond the items": with_array(EASE + "kept", at(-1, 10**6)),
    "a linear item before the items": with_array(EASE + "kept", at(0, -1)),
    "linear weights of fewer items": with_array(EASE + "weights", lambda array: array[:-1]),
    "a catalogue of 2**62 items": with_json(EASE + "linear.json", size=2**62),
    "a catalogue of -1 items": with_json(EASE + "linear.json", size=-1),
    "linear settings with more": with_json(EASE + "linear.json", __class__="os.system"),
    "popularity in text": with_json(POPULAR + "popularity.json", own="1"),
    "popularity that is not finite": with_array(POPULAR + "counts", lambda array: array + np.inf),
    "popularity of whole numbers": with_array(POPULAR + "counts", lambda array: array.astype(np.int8)),
    "final weights of fewer members": with_array("final/weights", lambda array: array[:-1]),
    "a final model nested deep": with_text("final/logistic.json", lambda _: DEEP),
    "a vocabulary with a code below nothing": with_array("vocabulary/kept/0", at(0, -7)),
    "a vocabulary with a code twice": with_array("vocabulary/kept/0", lambda array: np.repeat(array, 2)),
    "a vocabulary of floats": with_array("vocabulary/kept/0", lambda array: array.astype(np.float32)),
    "a vocabulary of more names than arrays": with_text("vocabulary/dictionaries.json", lambda _: '["a", "b", "c", "d", "e", "f", "g"]'),
    "a vocabulary of a number": with_text("vocabulary/dictionaries.json", lambda _: "7"),
    "a member of no plugin": about(model="os.system"),
    "a member that is a list": about(model=["gbdt"]),
    "a member outside": about(name="../../gbdt"),
    "a member of no name": about(name=None),
    "a member with more": about(reduce="os.system"),
    "a member loaded by another plugin": about(model="itemknn"),
    "members that are a number": with_json("ensemble.json", members=3),
    "a target that is not": with_json("ensemble.json", target={"kind": "pickle", "classes": [], "horizons": []}),
    "an ensemble nested deep": with_text("ensemble.json", lambda _: DEEP),
    "an ensemble without a final model": with_text("ensemble.json", lambda text: text.replace('"final"', '"last"')),
    "an ensemble that is not there": without("ensemble.json"),
}  # fmt: skip
