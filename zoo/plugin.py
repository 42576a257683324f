"""Everything a plugin may import, and nothing else."""

from zoo.contract import (
    PADDING,
    UNKNOWN,
    Array,
    Artefact,
    Block,
    Catalogue,
    Column,
    Examples,
    FeatureBatch,
    FittedModel,
    ModelPlugin,
    ModelSpec,
    Progress,
    Target,
    TargetKind,
    Task,
    TrainingData,
    gather,
)
from zoo.errors import PluginError, ZooError
from zoo.hookspecs import hookimpl

__all__ = [
    "PADDING",
    "UNKNOWN",
    "Array",
    "Artefact",
    "Block",
    "Catalogue",
    "Column",
    "Examples",
    "FeatureBatch",
    "FittedModel",
    "ModelPlugin",
    "ModelSpec",
    "PluginError",
    "Progress",
    "Target",
    "TargetKind",
    "Task",
    "TrainingData",
    "ZooError",
    "gather",
    "hookimpl",
]
