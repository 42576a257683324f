"""Whom a treatment changes: learners over the zoo's models, chosen and tested on randomised trials, with or without an event log."""
