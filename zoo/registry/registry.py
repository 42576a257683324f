"""The registry: registers versions with their artefacts, resolves references to them, and moves aliases between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import func, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from zoo.artefacts import DIGEST, ArtefactStore
from zoo.contract import Artefact
from zoo.errors import ArtefactError, RegistryError, UnknownReferenceError, UsageError, choices
from zoo.registry.database import Database, emptied, missing
from zoo.registry.models import AliasRow, ModelRow, VersionRow
from zoo.registry.reference import CANARY, CHAMPION, Version, checked, parse
from zoo.registry.search import matching
from zoo.registry.values import described, plain
from zoo.remote import RemoteArtefacts

if TYPE_CHECKING:
    from zoo.project import Project

SCORES = "scores"
"""The metric that names an artefact beside the model's: the scores of its test rows."""


class Registry:
    """Versions of models in one database, their artefacts in one store. Threads may share it; each process opens its own."""

    def __init__(self, database: Database, artefacts: ArtefactStore) -> None:
        self._database = database
        self.artefacts = artefacts

    @classmethod
    def of(cls, project: Project, *, create: bool = True) -> Self:
        """The registry of a project, as ``open``."""
        url = project.artefacts_url
        return cls.open(
            project.registry_url, project.artefacts if url is None else RemoteArtefacts(url, project.artefacts), create=create
        )

    @classmethod
    def open(cls, url: str | Path, artefacts: str | Path | ArtefactStore, *, create: bool = True) -> Self:
        """Open the registry, creating or migrating its tables.

        url: a path or ``sqlite:///PATH``, or ``postgresql://USER:PASSWORD@HOST:PORT/NAME``. create: False for those who only read,
        and then make no SQLite file where there is none. artefacts: their folder, or the store itself.
        Raises RegistryError when the database cannot be reached, is damaged, is not there, or belongs to a newer zoo.
        """
        gone = None if create else missing(url)
        if gone is not None:
            raise RegistryError(f"no model is registered yet (there is no {gone}); train one with: zoo train TASK")
        store = artefacts if isinstance(artefacts, ArtefactStore) else ArtefactStore(artefacts)
        lost = emptied(url)
        if lost is not None and any(store.root.glob("*/manifest.json")):
            raise RegistryError(
                f"the registry {lost} is damaged: it is empty, and {store.root} holds artefacts; "
                "restore it from a backup, or delete it to start an empty one"
            )
        return cls(Database(url), store)

    def close(self) -> None:
        """Let go of the database's connections."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def register(
        self,
        model: str,
        artefact: Artefact,
        metrics: Mapping[str, Any],
        lineage: Mapping[str, Any],
        tags: Mapping[str, Any] | None = None,
    ) -> Version:
        """Store the artefact, then add the model's next version in one transaction; a failure in between adds nothing.

        metrics, lineage, tags: what JSON can hold; numpy numbers become numbers, and floats that are not finite None.
        Raises RegistryError for a bad name or value or an unusable database, ArtefactError when the artefact cannot be stored.
        """
        checked(model, "a model")
        about = described(metrics, lineage, tags)
        digest = self.artefacts.write(artefact)
        return self._added(model, digest, about, lambda: self.artefacts.write(artefact))

    def add(
        self,
        model: str,
        digest: str,
        metrics: Mapping[str, Any],
        lineage: Mapping[str, Any],
        tags: Mapping[str, Any] | None = None,
    ) -> Version:
        """As ``register`` with an artefact that the store holds. Raises ArtefactError where it is missing or damaged."""
        checked(model, "a model")
        about = described(metrics, lineage, tags)
        self.artefacts.verify(digest)
        return self._added(model, digest, about, lambda: self.artefacts.verify(digest))

    def _added(self, model: str, digest: str, about: Mapping[str, Any], again: Callable[[], object]) -> Version:
        """The model's next version. again: called where its artefact went since it was written."""
        created = datetime.now(UTC)
        with self._database.transaction(write=True) as session:
            insert = (sqlite if self._database.is_sqlite else postgresql).insert(ModelRow)
            session.execute(insert.values(name=model, created=created).on_conflict_do_nothing())
            _hold(session, model)
            if not self.artefacts.exists(digest):  # ``keep`` removed the like of it since
                again()
            newest = session.scalar(select(func.max(VersionRow.number)).where(VersionRow.model == model))
            row = VersionRow(
                model=model, number=(newest or 0) + 1, created=created, digest=digest, status="ready", aliases=[], **about
            )
            session.add(row)
        return _version(row)

    def models(self) -> list[str]:
        """Names of all models, sorted."""
        with self._database.transaction() as session:
            return sorted(session.scalars(select(ModelRow.name)))

    def search(self, words: str, model: str | None = None) -> list[Version]:
        """As ``versions``, in which every one of the words is found: see ``zoo.registry.search.matching``."""
        return matching(self.versions(model), words)

    def versions(self, model: str | None = None) -> list[Version]:
        """Versions of one model or of all, by model and number. Raises UnknownReferenceError for an unknown model."""
        with self._database.transaction() as session:
            if model is not None:
                _known(session, model)
            query = select(VersionRow) if model is None else select(VersionRow).where(VersionRow.model == model)
            return sorted(map(_version, session.scalars(query)), key=lambda version: (version.model, version.number))

    def get(self, reference: str) -> Version:
        """``churn@3``, ``churn@champion``, or ``churn``: its champion if there is one, else its newest version that is ready.

        Raises UnknownReferenceError listing the models, versions and aliases that exist; RegistryError where there is none at all.
        """
        asked = parse(reference)
        with self._database.transaction() as session:
            _known(session, asked.model)
            if asked.number is not None:
                return _version(_row(session, asked.model, asked.number))
            alias = session.get(AliasRow, (asked.model, asked.alias or CHAMPION))
            if alias is not None:
                return _version(_row(session, asked.model, alias.number))
            if asked.alias is not None:
                raise UnknownReferenceError(
                    f"model {asked.model!r} has no alias {asked.alias!r}; it has {_contents(session, asked.model)}"
                )
            ready = select(VersionRow).where(VersionRow.model == asked.model, VersionRow.status == "ready")
            newest = session.scalar(ready.order_by(VersionRow.number.desc()).limit(1))
            if newest is None:
                raise UnknownReferenceError(
                    f"every version of {asked.model!r} is retired; name one: it has {_contents(session, asked.model)}"
                )
            return _version(newest)

    def load(self, reference: str) -> tuple[Version, Artefact]:
        """The version that ``get`` finds and its artefact. Raises ArtefactError when that is missing or damaged."""
        version = self.get(reference)
        try:
            return version, self.artefacts.read(version.digest)
        except ArtefactError as error:
            raise ArtefactError(f"{version.reference} cannot be loaded: {error}") from error

    def promote(self, model: str, version: int, alias: str = CHAMPION) -> Version | None:
        """Point the alias at a version, and return the version that it pointed at before (None if it is new).

        A version that becomes the champion is no canary any more. What of it is only here is sent to where artefacts lie.
        Raises UnknownReferenceError for a missing version, RegistryError for a retired one, ArtefactError when its artefact is not whole.
        """
        return self._point(model, version, checked(alias, "an alias"))

    def _point(self, model: str, version: int, alias: str, seen: int | None = None) -> Version | None:
        """``promote``. seen: what the alias named when this was decided, if it matters; RegistryError where it names another by now."""
        found = self.get(f"{model}@{version}")
        _promotable(found.reference, found.status)  # before anything is sent
        try:
            self.artefacts.send(found.digest)
            self.artefacts.verify(found.digest)
        except ArtefactError as error:
            raise ArtefactError(f"{found.reference} cannot be promoted: {error}") from error
        for scores in _digests(found.digest, found.metrics)[1:]:
            with suppress(ArtefactError):  # it answers without them
                self.artefacts.send(scores)
        with self._database.transaction(write=True) as session:
            _hold(session, model)
            row = _row(session, model, version)
            _promotable(found.reference, row.status)
            current = session.get(AliasRow, (model, alias))
            before = None if current is None else current.number
            if seen is not None and before != seen:
                names = "nothing" if before is None else f"{model}@{before}"
                raise RegistryError(
                    f"{model}@{alias} was {model}@{seen} a moment ago and names {names} now; look who moved it, then ask again"
                )
            former = before if before != version or current is None else current.former  # naming it again keeps the way back
            session.merge(AliasRow(model=model, name=alias, number=version, former=former))
            tried = session.get(AliasRow, (model, CANARY)) if alias == CHAMPION else None
            if tried is not None and tried.number == version:
                session.delete(tried)
            session.flush()
            return None if before is None else _version(_row(session, model, before))

    def demote(self, model: str, alias: str) -> Version:
        """Take an alias away, its way back included; returns the version that it named.

        Raises UnknownReferenceError where there is no such alias.
        """
        found = self.get(f"{model}@{checked(alias, 'an alias')}")
        with self._database.transaction(write=True) as session:
            _hold(session, model)
            row = session.get(AliasRow, (model, alias))
            if row is not None:
                session.delete(row)
        return found

    def rollback(self, model: str, alias: str = CHAMPION) -> tuple[Version, Version]:
        """Point the alias back at the version it named before. Returns (the version it names since, the one it named until then).

        Once more goes forward again. Raises UnknownReferenceError for a missing alias, RegistryError where it never named another
        version, that one is retired or somebody else moves the alias meanwhile, ArtefactError when its artefact is not whole.
        """
        now = self.get(f"{model}@{checked(alias, 'an alias')}")
        with self._database.transaction() as session:
            row = session.get(AliasRow, (model, alias))
            former = None if row is None else row.former
        if former is None:
            raise RegistryError(f"{model}@{alias} has only ever been {now.reference}; there is no version to go back to")
        if self.get(f"{model}@{former}").status != "ready":
            raise RegistryError(
                f"{model}@{alias} was {model}@{former} before {now.reference}, and that is retired, so there is no way back; name the "
                f"version to go to, one that `zoo models` shows as ready: zoo promote {model}@NUMBER"
                + ("" if alias == CHAMPION else f" --alias {alias}")
            )
        self._point(model, former, alias, now.number)
        return self.get(f"{model}@{former}"), now

    def retire(self, model: str, version: int) -> None:
        """Keep a version, but never take it as the newest nor promote it. Raises RegistryError while an alias points at it."""
        with self._database.transaction(write=True) as session:
            _known(session, model)
            _hold(session, model)
            row = _row(session, model, version)
            if row.aliases:
                names = [alias.name for alias in row.aliases]
                ways = [f"take the alias away first: zoo demote {model}@{name}" for name in names if name != CHAMPION]
                ways += ["promote another version before it is retired"] * (CHAMPION in names)
                raise RegistryError(f"{model}@{version} is {', '.join(names)}; {', and '.join(ways)}")
            row.status = "retired"

    def formers(self, model: str) -> dict[int, list[str]]:
        """Number of a version -> the aliases, sorted, that a rollback points back at it."""
        found: dict[int, list[str]] = {}
        with self._database.transaction() as session:
            for alias in session.scalars(select(AliasRow).where(AliasRow.model == model).order_by(AliasRow.name)):
                if alias.former is not None:
                    found.setdefault(alias.former, []).append(alias.name)
        return found

    def tag(self, model: str, version: int, tags: Mapping[str, Any]) -> Version:
        """Set these tags of a version and leave its others; a value of None removes one. Returns it as it is since.

        Raises UnknownReferenceError for a missing version, RegistryError for a value that JSON cannot hold.
        """
        given = plain(dict(tags), "tags")
        with self._database.transaction(write=True) as session:
            _known(session, model)
            _hold(session, model)
            row = _row(session, model, version)
            row.tags = {key: value for key, value in {**row.tags, **given}.items() if value is not None}
            session.flush()
            return _version(row)

    def keep(self, model: str, count: int) -> list[Version]:
        """Retire all but the newest ``count`` ready versions and delete their artefacts; returns those whose artefact went.

        A version stays whole that an alias names or would go back to, and an artefact that another version shares. Versions retired
        before lose theirs, too. Killed in between, the next call goes on. Raises UnknownReferenceError for an unknown model.
        """
        if count < 1:
            raise UsageError(f"keep {count} versions of {model!r}? Expected at least 1; a version is retired by its number")
        with self._whole(model) as (session, rows):
            held = _held(session, model) | {row.number for row in [row for row in rows if row.status == "ready"][-count:]}
            for row in rows:
                if row.number not in held:
                    row.status = "retired"
        # only what is known to be retired loses its artefact, so that whoever dies here leaves no version that is ready without one
        with self._whole(model) as (session, rows):
            held = _held(session, model)
            retired = [row for row in rows if row.status == "retired" and row.number not in held]
            others = VersionRow.number.not_in([row.number for row in retired])
            query = select(VersionRow.digest, VersionRow.metrics).where((VersionRow.model != model) | others)
            shared = {digest for one in session.execute(query) for digest in _digests(one.digest, one.metrics)}
            out, gone = [], dict[str, None]()
            for row in retired:
                own = [each for each in _digests(row.digest, row.metrics) if each not in shared and self.artefacts.exists(each)]
                gone |= dict.fromkeys(own)
                out += [_version(row)] * (row.digest in own)
            for digest in gone:
                self.artefacts.delete(digest)
        return out

    @contextmanager
    def _whole(self, model: str) -> Iterator[tuple[Session, list[VersionRow]]]:
        """A model's versions by number, while nobody writes to any model: artefacts are shared between them."""
        with self._database.transaction(write=True) as session:
            _known(session, model)
            if not self._database.is_sqlite:
                session.execute(text("LOCK TABLE model IN EXCLUSIVE MODE"))
            yield session, list(session.scalars(select(VersionRow).where(VersionRow.model == model).order_by(VersionRow.number)))


def _promotable(reference: str, status: str) -> None:
    if status != "ready":
        raise RegistryError(f"{reference} is {status} and cannot be promoted; promote another version")


def _digests(digest: str, metrics: Mapping[str, Any]) -> list[str]:
    """Digests of a version's artefacts: the model's, and that of its scores of test rows, where it has any."""
    scores = metrics.get(SCORES)
    return [digest, *([scores] if isinstance(scores, str) and DIGEST.fullmatch(scores) else [])]


def _held(session: Session, model: str) -> set[int]:
    """Numbers that an alias names, or went from."""
    aliases = session.scalars(select(AliasRow).where(AliasRow.model == model)).all()
    return {number for alias in aliases for number in (alias.number, alias.former) if number is not None}


def _hold(session: Session, model: str) -> None:
    """Keep other writers of this model waiting until the transaction ends (on SQLite it is the only writer already)."""
    session.execute(select(ModelRow.name).where(ModelRow.name == model).with_for_update())


def _known(session: Session, model: str) -> None:
    if session.get(ModelRow, model) is None:
        known = session.scalars(select(ModelRow.name)).all()
        if not known:
            raise RegistryError(f"no model is registered yet, so there is no {model!r}; train one with: zoo train TASK")
        near = get_close_matches(model, known)
        raise UnknownReferenceError(
            choices("model", model, known) + (f"; did you mean {' or '.join(near)}?" if near else ""), model
        )


def _row(session: Session, model: str, number: int) -> VersionRow:
    row = session.get(VersionRow, (model, number))
    if row is None:
        raise UnknownReferenceError(f"model {model!r} has no version {number}; it has {_contents(session, model)}")
    return row


def _contents(session: Session, model: str) -> str:
    """``versions 1 to 3; aliases: champion (2)``."""
    newest = session.scalar(select(func.max(VersionRow.number)).where(VersionRow.model == model))
    aliases: Sequence[AliasRow] = session.scalars(select(AliasRow).where(AliasRow.model == model)).all()
    listed = ", ".join(sorted(f"{alias.name} ({alias.number})" for alias in aliases))
    return f"versions 1 to {newest}; aliases: {listed or '(none)'}"


def _version(row: VersionRow) -> Version:
    return Version(
        model=row.model,
        number=row.number,
        created=row.created,
        digest=row.digest,
        metrics=row.metrics,
        lineage=row.lineage,
        aliases=tuple(alias.name for alias in row.aliases),
        tags=row.tags,
        status=row.status,
    )
