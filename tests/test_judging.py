"""The command line that a record names is one that makes the run again."""

from __future__ import annotations

import shlex

from zoo.judging import command


def test_a_command_has_the_options_that_were_given_and_no_other() -> None:
    assert command("churn") == "zoo train churn"
    assert command("churn", test_start=None, check_leaks=False, member=None) == "zoo train churn"
    given = command("churn", test_start="2017-09-01T00:00:00+00:00", member=("gbdt", "gru"), check_leaks=True)
    assert given == "zoo train churn --test-start 2017-09-01T00:00:00+00:00 --member gbdt --member gru --check-leaks"


def test_words_with_spaces_are_quoted() -> None:
    assert shlex.split(command("my task; rm -rf", test_end="a b")) == ["zoo", "train", "my task; rm -rf", "--test-end", "a b"]
