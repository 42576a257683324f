"""The best that we could write by hand for ``make bench-features``, in polars and in DuckDB's SQL, one measurement a process.

``python features_queries.py CASE ENGINE-WAY ROWS RUNS`` in an environment of its own (polars, DuckDB, pyarrow). What an expert would
prepare once is prepared before the clock starts: events sorted by user and time, running indexes and running sums, lists by user.
Answers come as one Arrow table in the order of the rows; they are written to CASE/ENGINE-WAY.parquet.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measured import measure, say

DAY = 86_400_000_000
LISTS = 50
KEY_START = 1_672_531_200_000_000 - 100 * DAY
"""Before every time of the generated log less the longest window."""
WINDOWS = {"1d": DAY, "7d": 7 * DAY, "28d": 28 * DAY, "90d": 90 * DAY}


def polars_rows(case: Path, number: int) -> Any:
    import polars as pl

    rows = pl.read_parquet(case / "rows.parquet").head(number)
    return rows.select("user_id", t=pl.col("event_timestamp").dt.epoch("us"))


def as_of(rows: Any, events: Any, back: int = 0) -> Any:
    """Each row's newest event before t (less ``back``), in the rows' order; both sides are sorted by user, then time."""
    import polars as pl

    left = rows.lazy().with_row_index("row").with_columns(at=pl.col("t") - back).sort("user_id", "at")
    return left.join_asof(
        events.lazy(),
        left_on="at",
        right_on="time",
        by="user_id",
        strategy="backward",
        allow_exact_matches=False,
        check_sortedness=False,
    ).sort("row")


def keyed(user: Any, time: Any) -> Any:
    """One number that orders by user, then time, where users are below 2 ** 18 and times within a year or so of the generated log's."""
    return user * (1 << 45) + (time - KEY_START)


def as_of_key(rows: Any, events: Any, back: int = 0) -> Any:
    """The same by one merge of two sorted columns of such numbers; what it finds of another user is none."""
    import polars as pl

    left = rows.lazy().with_row_index("row").with_columns(at=keyed(pl.col("user_id"), pl.col("t") - back)).sort("at")
    found = left.join_asof(events.lazy(), left_on="at", right_on="key", strategy="backward", allow_exact_matches=False).sort(
        "row"
    )
    mine = pl.col("user") == pl.col("user_id")
    kept = [name for name in events.columns if name not in ("key", "user")]
    return found.with_columns(pl.when(mine).then(pl.col(name)).alias(name) for name in kept)


def polars_events(case: Path) -> Any:
    """Events with their running index and where their user's begin."""
    import polars as pl

    events = pl.read_parquet(case / "events.parquet").with_row_index("pos").with_columns(pl.col("pos").cast(pl.Int64))
    return events.with_columns(first=pl.col("pos").min().over("user_id"))


def polars_slice(case: Path, number: int) -> Callable[[], Any]:
    """As-of join on a running index, then a slice of the user's list."""
    import polars as pl

    rows, events = polars_rows(case, number), polars_events(case)
    lists = events.group_by("user_id", maintain_order=True).agg("item_id", "value")
    small = events.select("user_id", "time", "pos", "first")

    def answer() -> Any:
        before = pl.col("pos") - pl.col("first") + 1
        found = as_of(rows, small).with_columns(
            low=pl.max_horizontal(before - LISTS, 0), length=pl.min_horizontal(before, LISTS).fill_null(0)
        )
        joined = found.collect().join(lists, on="user_id", how="left", maintain_order="left")  # eager: a lazy plan is slower here
        cut = (pl.col(name).list.slice("low", "length").alias(shown) for name, shown in SHOWN)
        return joined.select("user_id", "t", *cut).to_arrow()

    return answer


def polars_explode(case: Path, number: int) -> Callable[[], Any]:
    """As-of join on a running index, then ranges of positions exploded, gathered and grouped again."""
    import polars as pl

    rows, events = polars_rows(case, number), polars_events(case)
    small = events.select("user_id", "time", "pos", "first")

    def answer() -> Any:
        low = pl.max_horizontal(pl.col("pos") - (LISTS - 1), "first")
        found = as_of(rows, small).select("row", "user_id", "t", at=pl.int_ranges(low, pl.col("pos") + 1)).collect()
        flat = found.select("row", "at").explode("at").drop_nulls("at")
        values = (events[name].gather(flat["at"]).alias(shown) for name, shown in SHOWN)
        grouped = flat.select("row", *values).group_by("row", maintain_order=True).agg("items", "values")
        return found.drop("at").join(grouped, on="row", how="left", maintain_order="left").drop("row").to_arrow()

    return answer


def polars_gather(case: Path, number: int) -> Callable[[], Any]:
    """As-of join on a running index, ranges of positions exploded and gathered in polars, and lists assembled by pyarrow."""
    import numpy as np
    import polars as pl
    import pyarrow as pa

    rows, events = polars_rows(case, number), polars_events(case)
    small = events.select("user_id", "time", "pos", "first")

    def answer() -> Any:
        low = pl.max_horizontal(pl.col("pos") - (LISTS - 1), "first")
        found = as_of(rows, small).select("user_id", "t", low=low, high=pl.col("pos") + 1).collect()
        at = found.drop_nulls("low").select(at=pl.int_ranges("low", "high"))["at"].explode()
        lengths = found.select((pl.col("high") - pl.col("low")).fill_null(0))["high"].to_numpy()
        offsets = pa.array(np.concatenate(([0], np.cumsum(lengths))))
        lists = {s: pa.LargeListArray.from_arrays(offsets, events[n].gather(at).to_arrow()) for n, s in SHOWN}
        return pa.table({"user_id": found["user_id"].to_arrow(), "t": found["t"].to_arrow(), **lists})

    return answer


SHOWN = (("item_id", "items"), ("value", "values"))


def polars_running(case: Path) -> Any:
    """Events with the running sums of their user."""
    import polars as pl

    money = (pl.col("value") * 10_000).round().fill_null(0).cast(pl.Int64), (pl.col("price") * 10_000).round().cast(pl.Int64)
    day = pl.col("time") // DAY
    fresh = (day != day.shift(1)).fill_null(True)
    return pl.read_parquet(case / "events.parquet", columns=["user_id", "time", "value", "price"]).select(
        "user_id",
        "time",
        number=pl.int_range(1, pl.len() + 1).over("user_id"),
        spend=money[0].cum_sum().over("user_id"),
        price=money[1].fill_null(0).cum_sum().over("user_id"),
        priced=money[1].is_not_null().cast(pl.Int64).cum_sum().over("user_id"),
        days=fresh.over("user_id").cast(pl.Int64).cum_sum().over("user_id"),
        # the event after this one is of the same day: a window that begins there has that day already counted before it
        again=(day == day.shift(-1)).fill_null(False).over("user_id"),
    )


def polars_windows(rows: Any, running: Any, join: Callable[..., Any]) -> Callable[[], Any]:
    """Windows as differences of running sums, found by one join for t and one for each window's start."""
    import polars as pl

    sums = ("number", "spend", "price", "priced", "days")

    def answer() -> Any:
        starts = [join(rows, running, back).select(*sums, "again") for back in WINDOWS.values()]
        now, *before = pl.collect_all([join(rows, running).select("user_id", "t", "time", *sums), *starts])
        end = {name: now[name].fill_null(0) for name in sums}
        out = {"user_id": now["user_id"], "t": now["t"]}
        for window, start in zip(WINDOWS, before):
            over = {name: end[name] - start[name].fill_null(0) for name in sums}
            out[f"count_{window}"] = over["number"]
            if window != "1d":
                out[f"spend_{window}"] = over["spend"] / 10_000
                out[f"days_{window}"] = over["days"] + (start["again"].fill_null(False) & (over["number"] > 0)).cast(pl.Int64)
            if window == "28d":
                out["price_28d"] = (
                    over["price"] / 10_000 / pl.select(pl.when(over["priced"] > 0).then(over["priced"])).to_series()
                )
        out["recency"] = (now["t"] - now["time"]) / 1_000_000
        return pl.DataFrame(out).to_arrow()

    return answer


def polars_asof(case: Path, number: int) -> Callable[[], Any]:
    """As-of joins by user."""
    return polars_windows(polars_rows(case, number), polars_running(case), as_of)


def polars_key(case: Path, number: int) -> Callable[[], Any]:
    """As-of joins on one number for user and time."""
    import polars as pl

    running = polars_running(case).with_columns(key=keyed(pl.col("user_id"), pl.col("time"))).rename({"user_id": "user"})
    return polars_windows(polars_rows(case, number), running.sort("key"), as_of_key)


def duckdb_prepared(case: Path, number: int) -> Any:
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute(
        f"CREATE TABLE r AS SELECT row_number() OVER () AS row, user_id, epoch_us(event_timestamp::TIMESTAMPTZ) AS t FROM "
        f"(FROM read_parquet('{case}/rows.parquet') LIMIT {number})"
    )
    connection.execute(f"CREATE TABLE ev AS SELECT *, row_number() OVER () - 1 AS pos FROM read_parquet('{case}/events.parquet')")
    return connection


def duckdb_slice(case: Path, number: int) -> Callable[[], Any]:
    """ASOF JOIN on a running index, then a slice of the user's list."""
    connection = duckdb_prepared(case, number)
    connection.execute("CREATE TABLE small AS SELECT user_id, time, pos - min(pos) OVER (PARTITION BY user_id) + 1 AS k FROM ev")
    connection.execute(
        "CREATE TABLE lists AS SELECT user_id, list(item_id ORDER BY pos) AS items, list(value ORDER BY pos) AS values "
        "FROM ev GROUP BY user_id"
    )
    cut = f"list_slice(l.{{0}}, greatest(k - {LISTS - 1}, 1), k) AS {{0}}"
    return lambda: connection.sql(
        "WITH j AS (SELECT r.row, r.user_id, r.t, coalesce(s.k, 0) AS k FROM r ASOF LEFT JOIN small s "
        "ON r.user_id = s.user_id AND r.t > s.time) "
        f"SELECT j.user_id, j.t, {cut.format('items')}, {cut.format('values')} FROM j LEFT JOIN lists l USING (user_id) ORDER BY row"
    ).to_arrow_table()


def duckdb_unnest(case: Path, number: int) -> Callable[[], Any]:
    """ASOF JOIN on a running index, then ranges of positions unnested, joined and grouped into lists."""
    connection = duckdb_prepared(case, number)
    connection.execute("CREATE TABLE small AS SELECT user_id, time, pos, min(pos) OVER (PARTITION BY user_id) AS first FROM ev")
    return lambda: connection.sql(
        "WITH j AS (SELECT r.row, s.pos, s.first FROM r ASOF JOIN small s ON r.user_id = s.user_id AND r.t > s.time), "
        f"x AS (SELECT row, unnest(range(greatest(pos - {LISTS - 1}, first), pos + 1)) AS p FROM j), "
        "g AS (SELECT row, list(item_id ORDER BY p) AS items, list(value ORDER BY p) AS values "
        "FROM x JOIN ev ON ev.pos = x.p GROUP BY row) "
        "SELECT r.user_id, r.t, items, values FROM r LEFT JOIN g USING (row) ORDER BY r.row"
    ).to_arrow_table()


def duckdb_asof(case: Path, number: int) -> Callable[[], Any]:
    """Windows as differences of running sums, found by one ASOF JOIN for t and one for each window's start."""
    connection = duckdb_prepared(case, number)
    connection.execute(
        "CREATE TABLE s AS WITH d AS (SELECT *, time // 86400000000 AS day FROM ev), "
        "f AS (SELECT *, coalesce(day <> lag(day) OVER u, true) AS fresh, coalesce(day = lead(day) OVER u, false) AS again "
        "FROM d WINDOW u AS (PARTITION BY user_id ORDER BY pos)) "
        "SELECT user_id, time, again, row_number() OVER u AS number, "
        "sum(coalesce(round(value * 10000)::BIGINT, 0)) OVER u AS spend, sum(coalesce(round(price * 10000)::BIGINT, 0)) OVER u AS price, "
        "count(price) OVER u AS priced, sum(fresh::BIGINT) OVER u AS days FROM f "
        "WINDOW u AS (PARTITION BY user_id ORDER BY pos ROWS UNBOUNDED PRECEDING)"
    )
    joins = " ".join(
        f"ASOF LEFT JOIN s w{name} ON r.user_id = w{name}.user_id AND r.t - {back} > w{name}.time"
        for name, back in WINDOWS.items()
    )
    over = "coalesce(n.{0}, 0) - coalesce(w{1}.{0}, 0)"
    columns = []
    for window in WINDOWS:
        number_over = over.format("number", window)
        columns.append(f"{number_over} AS count_{window}")
        if window != "1d":
            columns.append(f"({over.format('spend', window)})::BIGINT / 10000 AS spend_{window}")
            columns.append(
                f"({over.format('days', window)} + (coalesce(w{window}.again, false) AND {number_over} > 0)::BIGINT)::BIGINT "
                f"AS days_{window}"
            )
        if window == "28d":
            columns.append(
                f"({over.format('price', window)})::BIGINT / 10000 / nullif({over.format('priced', window)}, 0) AS price_28d"
            )
    return lambda: connection.sql(
        f"SELECT r.user_id, r.t, {', '.join(columns)}, (r.t - n.time) / 1000000 AS recency "
        f"FROM r ASOF LEFT JOIN s n ON r.user_id = n.user_id AND r.t > n.time {joins} ORDER BY r.row"
    ).to_arrow_table()


def duckdb_range(case: Path, number: int) -> Callable[[], Any]:
    """Rows and events in one table, and SQL's own range windows over it; distinct days are flags of a user's first event in a day."""
    connection = duckdb_prepared(case, number)
    connection.execute(
        "CREATE TABLE u AS WITH d AS (SELECT *, time // 86400000000 AS day FROM ev) "
        "SELECT NULL::BIGINT AS row, user_id, time AS t, 1 AS one, coalesce(round(value * 10000)::BIGINT, 0) AS spend, "
        "round(price * 10000)::BIGINT AS price, day FROM d UNION ALL SELECT row, user_id, t, 0, 0, NULL, NULL FROM r"
    )
    columns = []
    for window in WINDOWS:
        columns.append(f"coalesce(sum(one) OVER w{window}, 0)::BIGINT AS count_{window}")
        if window != "1d":
            columns.append(f"coalesce(sum(spend) OVER w{window}, 0)::BIGINT / 10000 AS spend_{window}")
            columns.append(f"count(DISTINCT day) OVER w{window} AS days_{window}")
        if window == "28d":
            columns.append(f"(sum(price) OVER w{window})::BIGINT / 10000 / nullif(count(price) OVER w{window}, 0) AS price_28d")
    defined = ", ".join(
        f"w{window} AS (PARTITION BY user_id ORDER BY t RANGE BETWEEN {back} PRECEDING AND 1 PRECEDING)"
        for window, back in WINDOWS.items()
    )
    return lambda: connection.sql(
        f"WITH x AS (SELECT row, user_id, t, {', '.join(columns)}, (t - max(CASE WHEN one = 1 THEN t END) OVER (PARTITION BY user_id "
        f"ORDER BY t RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)) / 1000000 AS recency FROM u WINDOW {defined}) "
        "SELECT * EXCLUDE (row) FROM x WHERE row IS NOT NULL ORDER BY row"
    ).to_arrow_table()


WAYS: dict[str, dict[str, Callable[[Path, int], Callable[[], Any]]]] = {
    "lists": {
        "polars-slice": polars_slice,
        "polars-explode": polars_explode,
        "polars-gather": polars_gather,
        "duckdb-slice": duckdb_slice,
        "duckdb-unnest": duckdb_unnest,
    },
    "windows": {"polars-key": polars_key, "polars-asof": polars_asof, "duckdb-asof": duckdb_asof, "duckdb-range": duckdb_range},
}


def main(case: Path, way: str, number: int, runs: int) -> None:
    import pyarrow.parquet as pq

    (make,) = (ways[way] for ways in WAYS.values() if way in ways)
    found, table = measure(make(case, number), runs)
    pq.write_table(table, case / f"{way}.parquet")
    say({**found, "rows": table.num_rows, "output_mb": table.nbytes / 1e6})


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
