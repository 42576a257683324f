"""What no honest writer wrote is refused in words before it is followed; see ``malicious.py`` for the list."""

from __future__ import annotations

from pathlib import Path

import malicious
import numpy as np
import pytest

from zoo.errors import ArtefactError, PluginError
from zoo.testing import toy

LARGE = {"header of 101 MB"}  # a second each; the benchmark has them


def test_what_they_are_made_of_loads_and_answers() -> None:
    ensemble = malicious.load(malicious.good())
    batch = ensemble.vocabulary.apply(toy(20, 1, "binary").batch)
    assert np.isfinite(ensemble.members[0].fitted.predict(batch)).all()
    assert len(malicious.FILES) + len(malicious.CONTENTS) >= 100


@pytest.mark.parametrize("case", [case for case in malicious.FILES if case not in LARGE])
def test_files_are_refused(tmp_path: Path, case: str) -> None:
    with pytest.raises(ArtefactError) as caught:
        malicious.read(case, tmp_path)
    assert len(str(caught.value)) < 2000
    assert not Path("/tmp/zoo-was-here").exists()


@pytest.mark.parametrize("case", malicious.CONTENTS)
def test_contents_are_refused(case: str) -> None:
    bad = malicious.CONTENTS[case](malicious.good())
    assert bad.texts != malicious.good().texts or bad.arrays.keys() != malicious.good().arrays.keys() or any(
        bad.arrays[name] is not array for name, array in malicious.good().arrays.items()
    ), "nothing was changed"  # fmt: skip
    with pytest.raises((ArtefactError, PluginError)) as caught:
        malicious.load(bad)
    assert len(str(caught.value)) < 2000
    assert not Path("/tmp/zoo-was-here").exists()
