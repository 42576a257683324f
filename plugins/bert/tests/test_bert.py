"""The plugin keeps the contract, and says, caches and trains what it promises."""

from __future__ import annotations

from zoo_bert import Bert

from zoo.testing import contract

test_contract = contract(Bert())
