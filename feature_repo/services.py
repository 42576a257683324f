"""One feature service a task."""

from activity import item_activity, user_activity, user_coupons
from feast import FeatureService
from pairs import user_campaign
from profiles import campaign_profile, item_profile, user_profile
from sequences import item_sequence, user_history, user_sequence, user_visits

churn = FeatureService(name="churn", features=[user_activity, user_visits, user_sequence])
campaign = FeatureService(
    name="campaign",
    features=[user_activity, user_coupons, user_campaign, user_profile, campaign_profile, user_visits, user_sequence],
)
recommendation = FeatureService(name="recommendation", features=[user_history])
items = FeatureService(name="items", features=[item_activity, item_sequence, item_profile])
