"""A stage of a run on the data that it reads: what its batches look like, and its parts, checked on its mesh."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxdistill import build, cached, fits, selected
from jaxdistill.build import Parts
from jaxdistill.cached import Cached
from jaxdistill.data.describe import Description
from jaxdistill.schedules import Horizon


def shapes(
    config: ConfigDict, described: Mapping[str, Description], caches: Mapping[str, Cached]
) -> dict[str, dict[str, Any]]:
    """Shapes of a stage's global batches, with what cached teachers add to them if it has teachers."""
    found = {}
    for stream, fields in build.batch_shapes(config, described).items():
        rows = fields["mask"].shape[0]
        more = cached.fields(caches, stream).items() if config.teachers else ()
        said = {name: jax.ShapeDtypeStruct((rows, *shape), dtype) for name, (shape, dtype) in more}
        found[stream] = {**fields, **said}
    return found


def parts(config: ConfigDict, described: Mapping[str, Description], mesh: Mesh, caches: Mapping[str, Cached]) -> Parts:
    """Everything that a stage needs, checked on shapes alone.

    Args:
        config: the stage's.
        described: the data, by stream.
        mesh: of its devices, which may be elsewhere.
        caches: teachers that are read, by name.

    Raises:
        ConfigError: naming the path in this config, the value and the cure.
    """
    horizon = Horizon(config.steps, selected.count(config, described["train"].records) / config.batch_size)
    living = {name: cache.model for name, cache in caches.items()}
    batch = shapes(config, described, caches)
    found = build.parts(config, batch, described["train"].classes, horizon, living)
    fits.check_constrained(found.student, batch["train"], mesh)
    fits.check_divided(config, mesh)
    return found
