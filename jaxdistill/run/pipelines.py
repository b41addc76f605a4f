"""Build the data pipeline of a training stage from its config."""

from pathlib import Path

from jaxdistill.core import registry
from jaxdistill.core.packages import default_folder
from jaxdistill.data.pipeline import Pipeline, Stream
from jaxdistill.data.stream import Transform
from jaxdistill.run.config import Config


def build_pipeline(config: Config, known: Pipeline | None = None) -> Pipeline:
    """Build the data pipeline for the training of one model: data set, batches, transforms and test examples.

    Args:
        config: config of this training.
        known: pipeline of another training on the same examples, whose shapes and number of examples are reused. With
            None, they are read from the data set.
    """
    data = config.data

    def stream(split: str, path: str, key: str, rows: int, augment: tuple[str, ...], augment_path: str) -> Stream:
        return Stream(split, path, key, rows, augment, _transforms(augment, augment_path))

    train = stream(data.train, "data", "train", config.batch_size, data.augment, "data.augment")
    extra = {
        name: stream(
            entry.split,
            f"streams.{name}",
            "split",
            entry.batch_size or config.batch_size,
            entry.augment,
            f"streams.{name}.augment",
        )
        for name, entry in config.streams.items()
    }
    deterministic = tuple(transform for transform in train.transforms if not transform.draws)
    return Pipeline(
        name=data.name,
        folder=data_folder(config),
        tokens=data.tokens,
        seed=config.seed,
        streams={"train": train, **extra},
        test=train._replace(split=data.test, key="test", transforms=deterministic),
        select=data.select,
        order=data.order,
        reused_descriptions=known.descriptions if known else None,
    )


def data_folder(config: Config) -> Path:
    """Return the folder of prepared data: the config key `data.folder`, or the default folder if the key is empty."""
    return Path(config.data.folder).expanduser() if config.data.folder else default_folder()


def _transforms(specs: tuple[str, ...], path: str) -> tuple[Transform, ...]:
    return tuple(registry.transforms.build(spec, path) for spec in specs)
