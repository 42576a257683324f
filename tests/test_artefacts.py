"""Artefact store: what was written comes back bit for bit, or an error names the file; nothing half-written is ever seen."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from zoo import artefacts
from zoo.artefacts import DTYPES, ArtefactStore
from zoo.contract import Artefact
from zoo.errors import ArtefactError, ZooError


def sample(seed: int = 0) -> Artefact:
    rng = np.random.default_rng(seed)
    return Artefact(
        {"layer/weight": rng.normal(size=(3, 5)).astype(np.float32), "codes": rng.integers(0, 9, 7, dtype=np.int32)},
        {"params.json": '{"leaves": 63}', "trees/model.txt": "tree\r\nline two\nüñí\n"},
    )


def assert_same(found: Artefact, expected: Artefact) -> None:
    assert dict(found.texts) == dict(expected.texts)
    assert found.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        assert found.arrays[name].dtype == array.dtype.newbyteorder("=")
        assert found.arrays[name].shape == array.shape
        assert found.arrays[name].tobytes() == array.astype(array.dtype.newbyteorder("<")).tobytes()


def names_under(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()} - {".lock"} if root.exists() else set()


def test_every_dtype_and_layout_comes_back_bit_for_bit(tmp_path):
    arrays = {f"of-{dtype}": np.arange(6).astype(dtype).reshape(2, 3) for dtype in DTYPES}
    arrays["scalar"] = np.array(2.5)
    arrays["empty"] = np.zeros((0, 4), np.float32)
    arrays["transposed"] = np.arange(12.0).reshape(3, 4).T
    arrays["strided"] = np.arange(20)[::3]
    arrays["big-endian"] = np.arange(5, dtype=">i4")
    arrays["not-a-number"] = np.array([np.nan, -0.0, np.inf])
    store = ArtefactStore(tmp_path)
    artefact = Artefact(arrays, {"empty.txt": "", "lines.txt": "a\r\nb\rc\n"})
    assert_same(store.read(store.write(artefact)), artefact)


def test_read_arrays_may_be_written_to(tmp_path):
    store = ArtefactStore(tmp_path)
    digest = store.write(sample())
    store.read(digest).arrays["codes"][:] = 0
    assert_same(store.read(digest), sample())


def test_empty_artefact_is_an_artefact(tmp_path):
    store = ArtefactStore(tmp_path)
    assert_same(store.read(store.write(Artefact())), Artefact())


def test_digest_is_the_hash_of_a_manifest_that_names_every_file(tmp_path):
    store = ArtefactStore(tmp_path)
    digest = store.write(sample())
    manifest = (tmp_path / digest / "manifest.json").read_bytes()
    assert sha256(manifest).hexdigest() == digest
    files = json.loads(manifest)["files"]
    assert set(files) == {"arrays.safetensors", "texts/params.json", "texts/trees/model.txt"}
    for name, entry in files.items():
        content = (tmp_path / digest / name).read_bytes()
        assert entry == {"sha256": sha256(content).hexdigest(), "size": len(content)}


def test_same_content_is_one_copy_whatever_the_order_of_its_parts(tmp_path):
    store = ArtefactStore(tmp_path)
    one = sample()
    other = Artefact(dict(reversed(one.arrays.items())), dict(reversed(one.texts.items())))
    assert store.write(one) == store.write(other)
    assert len(names_under(tmp_path)) == 1
    assert store.write(sample(1)) != store.write(one)


def test_delete_removes_it_and_only_it(tmp_path):
    store = ArtefactStore(tmp_path)
    digest, kept = store.write(sample()), store.write(sample(1))
    store.delete(digest)
    assert not store.exists(digest)
    assert names_under(tmp_path) == {kept}
    for again in (store.read, store.verify, store.delete):
        with pytest.raises(ArtefactError, match=f"no artefact {digest}"):
            again(digest)


@pytest.mark.parametrize("digest", ["", "abc", "../" + "0" * 61, "A" * 64, "0" * 63 + "\n"])
def test_what_is_no_digest_is_refused(tmp_path, digest):
    store = ArtefactStore(tmp_path)
    for use in (store.read, store.exists, store.delete):
        with pytest.raises(ArtefactError, match="64 hex digits"):
            use(digest)


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../up", "a/../b", "a/./b", ".", "..", "a//b", "a/", "a b", "a\\b", "a\n", "é", "a\0b", "x" * 201]
)
def test_names_that_could_leave_the_directory_are_refused(tmp_path, name):
    store = ArtefactStore(tmp_path)
    for artefact in (Artefact({name: np.zeros(1)}), Artefact(texts={name: "x"})):
        with pytest.raises(ArtefactError, match="cannot name a part"):
            store.write(artefact)
    assert names_under(tmp_path) == set()


@pytest.mark.parametrize(
    "array", [np.array([{}], object), np.array(["a"]), np.array(["2017-01-01"], "M8[us]"), np.zeros(1, "f4,i4"), [1.0, 2.0]]
)
def test_arrays_that_are_not_plain_numbers_are_refused_by_name(tmp_path, array):
    with pytest.raises(ArtefactError, match=r"array 'odd' is .*float32"):
        ArtefactStore(tmp_path).write(Artefact({"odd": array}))


def test_names_that_clash_or_are_reserved_are_refused(tmp_path):
    store = ArtefactStore(tmp_path)
    with pytest.raises(ArtefactError, match="'a/b' would need a folder named as the text 'a'"):
        store.write(Artefact(texts={"a": "x", "a/b": "y"}))
    with pytest.raises(ArtefactError, match="__metadata__"):
        store.write(Artefact({"__metadata__": np.zeros(1)}))
    with pytest.raises(ArtefactError, match="'bad' is no valid Unicode"):
        store.write(Artefact(texts={"bad": "\ud800"}))


def every_file(root: Path, digest: str) -> list[Path]:
    return sorted(path for path in (root / digest).rglob("*") if path.is_file())


def test_one_flipped_bit_in_any_file_is_found_and_named(tmp_path):
    store = ArtefactStore(tmp_path)
    digest = store.write(sample())
    assert len(every_file(tmp_path, digest)) == 4
    for path in every_file(tmp_path, digest):
        good = path.read_bytes()
        bad = good[:-1] + bytes([good[-1] ^ 1])
        path.write_bytes(bad)
        expected = digest if path.name == "manifest.json" else sha256(good).hexdigest()
        with pytest.raises(ArtefactError) as caught:
            store.read(digest)
        for part in (path.name, expected, sha256(bad).hexdigest()):
            assert part in str(caught.value)
        path.write_bytes(good)
    store.verify(digest)


def test_a_file_cut_short_grown_or_gone_is_found_and_named(tmp_path):
    store = ArtefactStore(tmp_path)
    digest = store.write(sample())
    for path in every_file(tmp_path, digest):
        good = path.read_bytes()
        for bad in (good[:-1], good + b"\0", b""):
            path.write_bytes(bad)
            with pytest.raises(ArtefactError, match=path.name):
                store.verify(digest)
        path.unlink()
        with pytest.raises(ArtefactError, match=path.name):
            store.verify(digest)
        path.write_bytes(good)


@pytest.mark.parametrize("reason", [errno.EMFILE, errno.EACCES, errno.EIO])
def test_what_cannot_be_read_now_is_no_rot_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int) -> None:
    store = ArtefactStore(tmp_path / "store")
    digest = store.write(sample())
    files = dict(store.files(digest))

    def refuse(*_: object, **__: object) -> bytes:
        raise OSError(reason, os.strerror(reason))

    with monkeypatch.context() as patched:
        patched.setattr(artefacts, "_content", refuse)
        with pytest.raises(ArtefactError, match=os.strerror(reason)):
            store.write(sample())
        with pytest.raises(ArtefactError, match=os.strerror(reason)):
            store.adopt(digest, files)
    store.verify(digest)
    assert_same(store.read(digest), sample())


def test_writing_again_mends_a_copy_that_rotted(tmp_path):
    store = ArtefactStore(tmp_path)
    digest = store.write(sample())
    (tmp_path / digest / "texts" / "params.json").write_text("{}")
    assert store.write(sample()) == digest
    assert_same(store.read(digest), sample())
    assert names_under(tmp_path) == {digest}


def test_links_and_pipes_are_refused_even_where_the_bytes_are_right(tmp_path):
    store = ArtefactStore(tmp_path / "store")
    digest = store.write(sample())
    file = store.root / digest / "texts" / "params.json"
    elsewhere = tmp_path / "elsewhere.json"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    with pytest.raises(ArtefactError, match=r"params\.json.*link"):
        store.read(digest)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ArtefactError, match=r"params\.json.*plain file"):
        store.read(digest)
    file.unlink()
    elsewhere.rename(file)
    (store.root / digest).rename(tmp_path / "moved")
    (store.root / digest).symlink_to(tmp_path / "moved")
    with pytest.raises(ArtefactError, match="link"):
        store.read(digest)


@pytest.mark.parametrize(
    "manifest",
    [
        b"not json",
        b"[]",
        b'{"format":1}',
        b'{"format":2,"files":{}}',
        b'{"format":1,"files":{"texts/../../secret":{"sha256":"0","size":1}}}',
        b'{"format":1,"files":{"/etc/hostname":{"sha256":"0","size":1}}}',
        b'{"format":1,"files":{"arrays.safetensors":{"size":1}}}',
    ],
)
def test_a_strangers_manifest_of_the_right_digest_is_still_checked(tmp_path, manifest):
    digest = sha256(manifest).hexdigest()
    (tmp_path / digest).mkdir()
    (tmp_path / digest / "manifest.json").write_bytes(manifest)
    with pytest.raises(ArtefactError, match=r"manifest\.json|format|cannot name"):
        ArtefactStore(tmp_path).read(digest)


def test_arrays_of_the_right_digest_that_are_not_safetensors_are_an_artefact_error(tmp_path):
    content = b"\xff" * 64
    entry = {"sha256": sha256(content).hexdigest(), "size": len(content)}
    manifest = json.dumps({"format": 1, "files": {"arrays.safetensors": entry}}).encode()
    digest = sha256(manifest).hexdigest()
    (tmp_path / digest).mkdir()
    (tmp_path / digest / "manifest.json").write_bytes(manifest)
    (tmp_path / digest / "arrays.safetensors").write_bytes(content)
    with pytest.raises(ArtefactError, match="cannot be parsed"):
        ArtefactStore(tmp_path).read(digest)


# Forks a writer that kills itself at the n-th line it executes of zoo/artefacts.py, for every n until a writer lives to its end.
# Prints for each: whether the root then shows anything but a whole artefact, and whether the next write works.
KILLED_WRITERS = """
import os, shutil, signal, sys
from pathlib import Path
import numpy as np
import zoo.artefacts
from zoo.contract import Artefact

root, step = Path(sys.argv[1]), int(sys.argv[2])
artefact = Artefact({"w": np.arange(20_000.0)}, {"a/b.txt": "text", "c.txt": "more"})
digest = zoo.artefacts.ArtefactStore(root / "reference").write(artefact)
count = unfinished = shown = 0
alive = False
while not alive:
    count += 1
    store = zoo.artefacts.ArtefactStore(root / "tried")
    child = os.fork()
    if child == 0:
        seen = 0
        def trace(frame, event, argument):
            global seen
            if frame.f_code.co_filename != zoo.artefacts.__file__:
                return None
            seen += event == "line"
            if seen == count * step:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace
        sys.settrace(trace)
        store.write(artefact)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    alive = os.WIFEXITED(status)
    assert alive or os.WTERMSIG(status) == signal.SIGKILL, status
    names = {path.name for path in store.root.glob("*")} - {".lock"}
    assert names <= {".unfinished", digest}, names
    unfinished += ".unfinished" in names
    if store.exists(digest):
        shown += 1
        store.verify(digest)
    assert store.write(artefact) == digest
    store.verify(digest)
    assert {path.name for path in store.root.iterdir()} == {".lock", digest}
    shutil.rmtree(store.root)
print(count, unfinished, shown)
"""


def test_a_writer_killed_at_any_line_shows_nothing_and_the_next_write_works(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED_WRITERS, tmp_path, "3"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    killed, unfinished, shown = map(int, done.stdout.split())
    assert killed > 20
    assert unfinished > 5, "no writer was killed in the middle of its files"
    assert shown < killed / 2


# A limit on file size is a full disk that needs neither root nor a mount: the kernel takes some bytes, then refuses.
REFUSED_WRITER = """
import resource, sys
import numpy as np
from zoo.artefacts import ArtefactStore
from zoo.contract import Artefact
from zoo.errors import ZooError

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    ArtefactStore(sys.argv[1]).write(Artefact({"w": np.arange(300_000.0)}, {"a.txt": "text"}))
except ZooError as error:
    print(error)
"""


def test_a_full_disk_is_said_and_nothing_is_left(tmp_path):
    done = subprocess.run([sys.executable, "-c", REFUSED_WRITER, tmp_path], capture_output=True, text=True, check=True)
    assert "no room for an artefact of 2400" in done.stdout
    assert str(tmp_path) in done.stdout
    assert names_under(tmp_path) == set()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_while_making_it_durable_leaves_nothing(tmp_path, monkeypatch, number):
    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    store = ArtefactStore(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ZooError, match="no room for an artefact"):
        store.write(sample())
    assert names_under(tmp_path) == set()
    monkeypatch.undo()
    assert_same(store.read(store.write(sample())), sample())


def test_a_root_that_cannot_be_a_directory_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtefactError, match="cannot write an artefact under"):
        ArtefactStore(tmp_path / "file" / "store").write(sample())
