"""Rows P12 and P14: Schemathesis over the OpenAPI document, and every route against every credential that is none."""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from figures import FOLDER, QUICK, Figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' shop, server and credentials


@contextmanager
def shop_service(**options: Any) -> Iterator[tuple[Any, Any]]:
    """(application, client) over a small trained shop."""
    from shop import make_shop
    from test_service import opened, running

    from zoo.service import app

    with tempfile.TemporaryDirectory(prefix="zoo-bench-") as folder:
        predictors, features = opened(make_shop(Path(folder) / "shop"))
        api = app(predictors, features, **options)
        with running(api) as client:
            yield api, client


def fuzzed(client: Any, cases: int, seed: int = 0) -> tuple[Counter[int], list[str]]:
    """Answers by status to so many Schemathesis cases over all operations, and what failed: 5xx, or an answer not as documented.

    X-Deadline-Ms is left out: a millisecond is rightly answered with 504.
    """
    import hypothesis
    import schemathesis
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    base = str(client.base_url).rstrip("/")
    document = client.get("/openapi.json").json()
    for path in document["paths"].values():
        for operation in path.values():
            operation.pop("parameters", None) if not any(
                p["in"] == "path" for p in operation.get("parameters", ())
            ) else operation.update(parameters=[p for p in operation["parameters"] if p["in"] == "path"])
    schema = schemathesis.openapi.from_dict(document)
    seen: Counter[int] = Counter()
    failed: list[str] = []
    operations = [found.ok() for found in schema.get_all_operations()]
    share = -(-cases // len(operations)) + 2  # some operations have few different cases
    checks = [content_type_conformance, response_schema_conformance, status_code_conformance]
    while sum(seen.values()) < cases:
        before = sum(seen.values())
        for operation in operations:
            for mode in schemathesis.GenerationMode:
                run_operation(operation, mode, -(-share // 2), base, seen, failed, checks, hypothesis, seed)
        # what has no wrong cases gave fewer: the rest goes to all again, with other draws
        seed, share = seed + cases, -(-(cases - sum(seen.values())) // len(operations)) + 2
        if sum(seen.values()) == before:
            break
    return seen, failed


def run_operation(
    operation: Any,
    mode: Any,
    count: int,
    base: str,
    seen: Counter[int],
    failed: list[str],
    checks: Any,
    hypothesis: Any,
    seed: int,
) -> None:
    quiet = [*hypothesis.HealthCheck]
    done = 0
    while done < count:  # an operation with few different cases ends early: it is asked again, cases differ or not
        before = done

        @hypothesis.seed(seed + done)
        @hypothesis.settings(
            max_examples=count - done,
            deadline=None,
            database=None,
            suppress_health_check=quiet,
            phases=[hypothesis.Phase.generate],
        )
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def one(case: Any) -> None:
            nonlocal done
            response = case.call(base_url=base)
            seen[response.status_code] += 1
            done += 1
            if response.status_code >= 500:
                failed.append(f"{operation.label}: {response.status_code} {response.text[:200]} to {case.body!r:.300}")
                return
            try:
                case.validate_response(response, checks=checks)
            except Exception as error:
                failed.append(f"{operation.label}: {str(error)[:600]}")

        try:
            one()
        except (hypothesis.errors.Unsatisfiable, schema_errors()):
            return
        if done == before:
            return


def schema_errors() -> Any:
    from schemathesis.errors import SchemathesisError

    return SchemathesisError


def p12() -> list[Figure]:
    """Schemathesis: no answer of 5xx, every answer as documented."""
    cases = 400 if QUICK else 10_000
    with shop_service() as (_, client):
        seen, failed = fuzzed(client, cases)
    errors = sum(count for status, count in seen.items() if status >= 500)
    for each in failed[:20]:
        print(each)
    return [
        Figure(
            id="P12",
            what=f"answers of 5xx to {sum(seen.values())} Schemathesis cases (by status: {dict(sorted(seen.items()))})",
            ours=errors,
            unit="answers",
            must="0 of 10,000 cases",
            reached=errors == 0 and sum(seen.values()) >= cases,
            why=f"{failed[:3]}",
        ),
        Figure(
            id="P12b",
            what="answers of those whose status, content type or body is not as documented",
            ours=len(failed) - errors,
            unit="answers",
            must="0",
            reached=len(failed) == errors,
            why=f"{failed[:3]}",
        ),
    ]


def p14() -> list[Figure]:
    """The table of routes and credentials, generated from the router."""
    from credentials import AUDIENCE, ISSUER, PUBLIC, ask, attacks, paths, token

    from zoo.service.access import ADMIN, OPEN, PUSH, READ, Access
    from zoo.service.settings import Jwt

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "public.pem").write_text(PUBLIC)
        access = Access(None, Jwt(("RS256",), ISSUER, AUDIENCE, Path(folder) / "public.pem"))
        table, wrong = [], []
        with shop_service(access=access) as (api, client):
            for method, path, role in paths(api):
                row: dict[str, Any] = {"method": method, "path": path, "role": role}
                if role != OPEN:
                    row |= {what: ask(client, method, path, given).status_code for what, given in attacks().items()}
                    wrong += [(method, path, what) for what in attacks() if row[what] != 401]
                for held in (READ, PUSH, ADMIN):
                    status = ask(client, method, path, f"Bearer {token(roles=[held])}").status_code
                    row[f"role {held}"] = status
                    if (status == 403) is (role in (OPEN, held) or held == ADMIN):
                        wrong.append((method, path, f"role {held}"))
                table.append(row)
    if not QUICK:
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / "access.json").write_text(json.dumps(table, indent=1) + "\n")
    tried = sum(len(row) - 3 for row in table)
    return [
        Figure(
            id="P14",
            what=f"requests of {tried} (every route of the router x credentials and roles) that were answered against their role",
            ours=len(wrong),
            unit="requests",
            must="0: all refused",
            reached=not wrong,
            why=str(wrong[:5]),
        )
    ]
