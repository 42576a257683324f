"""The conformance kit: what a plugin's author, and zoo's own tests, need to prove that a model keeps the contract.

In a plugin's tests: ``test_contract = contract(MyModel())``. Importing this needs no pytest.
"""

from zoo.testing.case import CheckFailed
from zoo.testing.echo import Echo
from zoo.testing.follower import Follower
from zoo.testing.kit import CheckResult, checks, contract, run_check, run_checks
from zoo.testing.toy import toy

__all__ = ["CheckFailed", "CheckResult", "Echo", "Follower", "checks", "contract", "run_check", "run_checks", "toy"]
