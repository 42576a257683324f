"""A child of row P13: loads mutated artefacts and says of each what came of it. Run by ``predict_registry.py``.

``fuzz_loader.py FOLDER FIRST COUNT``: inputs FIRST to FIRST + COUNT, each made of its own number alone. The number that is being tried is
in FOLDER/at, so that the parent knows what a crash was about. Prints one line of JSON.
"""

from __future__ import annotations

import json
import mmap
import random
import struct
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import malicious

from zoo.artefacts import ARRAYS, MANIFEST, ArtefactStore
from zoo.contract import Array, Artefact, FeatureBatch
from zoo.errors import ArtefactError, PluginError
from zoo.stacking import Ensemble, Fitted

ODD = [
    0,
    1,
    -1,
    2,
    7,
    255,
    256,
    -128,
    1000,
    65_536,
    2**31 - 1,
    2**31,
    -(2**31),
    2**32,
    2**53,
    2**63 - 1,
    2**63,
    -(2**63),
    2**64 - 1,
]
WORDS = [
    "nan",
    "inf",
    "-inf",
    "1e308",
    "1e-320",
    "1e999",
    "0x7f",
    "",
    " ",
    "null",
    "true",
    "[]",
    "{}",
    '"x"',
    "-0",
    "+1",
    "1_0",
    "\u0661",
]
PARTS = ("members/gbdt", "members/ease", "members/itemknn", "members/popularity", "final", "vocabulary")


def mutated_text(text: str, draw: random.Random) -> str:
    """One to four edits: a number replaced, characters changed, cut, doubled, or lines swapped."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        if not text:
            return text
        at, kind = draw.randrange(len(text)), draw.randrange(8)
        if kind <= 3:
            end = start = at
            while start and (text[start - 1].isalnum() or text[start - 1] in ".-"):
                start -= 1
            while end < len(text) and (text[end].isalnum() or text[end] in ".-"):
                end += 1
            new = str(draw.choice(ODD)) if kind <= 1 else draw.choice(WORDS) if kind == 2 else str(draw.randint(-20, 20))
            text = text[:start] + new + text[end:]
        elif kind == 4:
            text = (
                text[:at]
                + chr(draw.choice((0, 9, 10, 32, 45, 48, 61, 91, 93, 123, 0x7F, 0xE9, draw.randrange(128))))
                + text[at + 1 :]
            )
        elif kind == 5:
            text = text[:at] + text[at + draw.choice((1, 1, 2, 8, 64)) :]
        elif kind == 6:
            text = text[:at] + text[at : at + draw.choice((1, 4, 32))] * draw.choice((2, 3, 50)) + text[at:]
        else:
            lines = text.split("\n")
            one, other = draw.randrange(len(lines)), draw.randrange(len(lines))
            lines[one], lines[other] = lines[other], lines[one]
            text = "\n".join(lines)
    return text


def mutated_bytes(content: bytes, draw: random.Random) -> bytes:
    out = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 8))):
        if not out:
            break
        at, kind = draw.randrange(min(len(out), 400) if draw.random() < 0.7 else len(out)), draw.randrange(5)
        if kind == 0:
            out[at] = draw.randrange(256)
        elif kind == 1:
            out[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            out[at : at + 8] = struct.pack("<Q", draw.choice(ODD) % 2**64)
        elif kind == 3:
            del out[at : at + draw.choice((1, 4, 64))]
        else:
            out[at:at] = out[at : at + draw.choice((1, 8, 64))]
    return bytes(out)


def mutated_array(array: Array, draw: random.Random) -> Array:
    kind = draw.randrange(6)
    if kind == 0:
        return array[: draw.randrange(len(array) + 1)] if array.ndim else array
    if kind == 1:
        return array.astype(
            draw.choice(("int8", "int32", "int64", "uint64", "float16", "float32", "float64", "bool", "complex64"))
        )
    if kind == 2:
        return array.reshape(draw.choice(((-1,), (1, -1), (-1, 1), (1, -1, 1))))
    out = array.copy().reshape(-1)
    if out.size:
        values = ODD if array.dtype.kind in "iu" else [*ODD, float("nan"), float("inf"), 1e300]
        with np.errstate(all="ignore"):
            info = np.iinfo(array.dtype) if array.dtype.kind in "iu" else None
            for _ in range(draw.choice((1, 1, 3))):
                value = draw.choice(values) if draw.random() < 0.5 else draw.randint(-3, 40)
                out[draw.randrange(out.size)] = value if info is None else min(max(value, info.min), info.max)
    return out.reshape(array.shape)


class Target:
    """What is loaded, with rows that ask what was loaded for an answer."""

    def __init__(self, folder: Path) -> None:
        self.good = malicious.good()
        self.store = ArtefactStore(folder / "store")
        self.found = malicious.found()
        self.facts = {each["name"]: each for each in json.loads(self.good.texts["ensemble.json"])["members"]}
        self.binary = malicious.rows("binary", ("user_spend_28d", "user_region", "items")).batch.take(np.arange(4))
        self.ranking = malicious.rows("ranking", ("items", "event_types", "ages")).batch.take(np.arange(3))
        arrays = {"a": np.arange(6.0).reshape(2, 3), "b/c": np.arange(5, dtype=np.int32)}
        self.small = Artefact(arrays, {"x.json": '{"a": 1}', "t/y.txt": "y"})
        self.files = malicious.files_of(self.small)

    def try_trees(self, draw: random.Random) -> None:
        text = mutated_text(self.good.texts[malicious.TREES].partition("\nfeature_importances")[0], draw)
        text += "\nfeature_importances" + self.good.texts[malicious.TREES].partition("\nfeature_importances")[2]
        part = self.good.part("members/gbdt")
        self.load(
            "gbdt", Artefact(part.arrays, {**part.texts, "trees-0.txt": malicious.sized(text) if draw.random() < 0.7 else text})
        )

    def try_part(self, draw: random.Random) -> None:
        """One text or array of one part of the ensemble."""
        place = draw.choice(PARTS)
        part = self.good.part(place)
        texts, arrays = dict(part.texts), dict(part.arrays)
        names = [*(["text"] * bool(texts)), *(["array"] * bool(arrays))]
        if draw.choice(names) == "text":
            name = draw.choice(sorted(texts))
            texts[name] = mutated_text(texts[name], draw)
        else:
            name = draw.choice(sorted(arrays))
            arrays[name] = mutated_array(arrays[name], draw)
        part = Artefact(arrays, texts)
        if place.startswith("members/"):
            self.load(place.removeprefix("members/"), part)
        else:
            others = Artefact.merged(*(self.good.part(each).nested(each) for each in PARTS if each != place), part.nested(place))
            Ensemble.load(
                Artefact(others.arrays, {**others.texts, "ensemble.json": self.good.texts["ensemble.json"]}), self.found
            )

    def try_whole(self, draw: random.Random) -> None:
        texts = {**self.good.texts, "ensemble.json": mutated_text(self.good.texts["ensemble.json"], draw)}
        Ensemble.load(Artefact(self.good.arrays, texts), self.found)

    def try_files(self, draw: random.Random) -> None:
        """A folder whose manifest or arrays were mutated and whose hashes are right, else one whose hashes are not."""
        files: dict[str, bytes] = dict(self.files)
        kind = draw.randrange(4)
        if kind <= 1:
            files[ARRAYS] = mutated_bytes(files[ARRAYS], draw)
        manifest = malicious.manifest_of(files)
        if kind == 2:
            manifest = mutated_text(manifest.decode(), draw).encode()
        digest = sha256(manifest).hexdigest()
        if kind == 3:
            name = draw.choice(sorted(files))
            files[name] = mutated_bytes(files[name], draw)
        folder = self.store.root / digest
        for name, content in {MANIFEST: manifest, **files}.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        try:
            self.store.read(digest)
        finally:
            for name in (MANIFEST, *files):
                (folder / name).unlink()
            for inner in ("texts/t", "texts", "."):
                (folder / inner).rmdir()

    def load(self, name: str, artefact: Artefact) -> None:
        fitted: Any = Fitted.load(self.facts[name], artefact, self.found).fitted
        if name != "gbdt" or len(artefact.texts["trees-0.txt"]) % 4 == 0:  # LightGBM takes most of the time
            self.ask(fitted, self.binary if name == "gbdt" else self.ranking)

    def ask(self, fitted: Any, batch: FeatureBatch) -> None:
        """What was let in answers without following an index outside; an error in words is an answer too."""
        with suppress(PluginError, ValueError, LookupError, TypeError, ArithmeticError, MemoryError, AttributeError):
            fitted.predict(batch)
            if hasattr(fitted, "explain"):
                fitted.explain(batch)


SHARES: Mapping[str, int] = {"trees": 62, "part": 23, "whole": 3, "files": 12}


FORBIDDEN = ("exec", "compile", "subprocess.Popen", "os.system", "os.exec", "os.fork", "socket.connect", "pickle.find_class")


def main() -> None:
    folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    target = Target(folder)
    root = str(target.store.root)
    kinds = [kind for kind, share in SHARES.items() for _ in range(share)]
    for kind in SHARES:  # what is imported or read on first use is not the input's doing
        for seed in range(30):
            with suppress(ArtefactError, PluginError):
                getattr(target, f"try_{kind}")(random.Random(-seed))
    outside: Counter[str] = Counter()
    watching = False

    def watch(event: str, given: tuple[Any, ...]) -> None:
        if not watching:
            return
        if event in ("open", "os.listdir", "os.scandir") and isinstance(given[0], str) and not given[0].startswith(root):
            outside[given[0][:200]] += 1
        if event in FORBIDDEN:
            outside[f"{event} {str(given[0])[:100]}"] += 1

    sys.addaudithook(watch)
    seen: Counter[str] = Counter()
    escaped: dict[str, int] = {}
    with (folder / "at").open("r+b") as file, mmap.mmap(file.fileno(), 8) as at, np.errstate(all="ignore"):
        watching = True
        for number in range(first, first + count):
            at[:] = struct.pack("<q", number)
            draw = random.Random(number)
            kind = draw.choice(kinds)
            try:
                getattr(target, f"try_{kind}")(draw)
                seen[f"{kind} taken"] += 1
            except (ArtefactError, PluginError):
                seen[f"{kind} refused"] += 1
            except BaseException as error:
                seen[f"{kind} escaped"] += 1
                escaped.setdefault(f"{type(error).__name__}: {str(error)[:150]}", number)
        watching = False
    print(json.dumps({"seen": seen, "outside": outside, "escaped": escaped}))


if __name__ == "__main__":
    main()
