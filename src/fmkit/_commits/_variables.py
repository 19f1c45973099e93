"""The variables of a model, in the one order in which a commit lists them."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["ModelVariables", "group_variables", "list_variables"]


class ModelVariables(NamedTuple):
    """The variables of a model, each in one group only.

    Attributes:
        model: Weights, statistics of BatchNormalization, seeds of dropout.
        optimizer: The optimizer's, those of averages among them.
        metrics: The metrics'.
    """

    model: list[Any]
    optimizer: list[Any]
    metrics: list[Any]


def group_variables(model: Any) -> ModelVariables:
    """Return the variables of a built model and its optimizer, each once."""
    seen: set[int] = set()

    def new(variables: Any) -> list[Any]:
        found = {id(v): v for v in variables if id(v) not in seen}
        seen.update(found)
        return list(found.values())

    # `model.variables` has the metrics' too, so these are looked for first. Not
    # `model.weights`: that leaves out the seeds of dropout.
    metrics = new(model.metrics_variables)
    own = new(model.variables)
    optimizer = [] if model.optimizer is None else new(model.optimizer.variables)
    return ModelVariables(own, optimizer, metrics)


def list_variables(model: Any, *, metrics: bool) -> list[Any]:
    """Return all variables in the order of a commit, those of metrics if wanted."""
    groups = group_variables(model)
    return [*groups.model, *groups.optimizer, *(groups.metrics if metrics else [])]
