"""Feature store and model zoo for e-commerce behaviour sequences."""
