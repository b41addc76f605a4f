"""Start JAX in all processes of a run, and run a config."""

import sys
import textwrap
from pathlib import Path

import jax

from jaxdistill.core.errors import ConfigError
from jaxdistill.evaluation.report.formats import count
from jaxdistill.run import distill
from jaxdistill.run.config import Config
from jaxdistill.run.rendezvous import wait_for_all


def launch(config: Config, workdir: str, source: str, trust_source: bool) -> None:
    """Train and evaluate the models of a config, and export them if the config has `exports`.

    In a run with several processes, every process must call the function; it connects them.

    Args:
        config: a complete config.
        workdir: folder for checkpoints, logs, results.json and report.html.
        source: file path of the Python file that defines the config; empty if there is none.
        trust_source: True if the user has named this Python file, or allowed that it runs; exports may then execute the
            copy of it in the workdir.

    Raises:
        ConfigError: the config is wrong; the other errors are those of `distill`.
    """
    _connect(config)
    distill.distill(config, workdir, source=source)
    if config.exports:
        from jaxdistill.run import export_run  # only here: a run without exports needs none of it

        for entry in config.exports.values():
            options = export_run.Options(entry.runtime, entry.threads, device=entry.device, trust_source=trust_source)
            sys.stdout.write(export_run.export(Path(workdir), [entry.model], [entry.to], options))


def check_report(config: Config, workdir: str | None) -> str:
    """Check a config against every rule, without compiling anything, and return a text about what a run would train.

    Args:
        config: a complete config.
        workdir: folder of the run, which must be new or hold a run of the same config; None if there is none.

    Raises:
        ConfigError: the config breaks a rule.
    """
    resolved = distill.check_config(config, workdir or None)
    data = resolved.data
    readable = (textwrap.shorten(name, 40, placeholder="...") for name in data.class_names[:8])
    printable = ("".join(x if x.isprintable() else "?" for x in name) for name in readable)
    shown = [*printable, *(["..."] if len(data.class_names) > 8 else [])]
    names = f" ({', '.join(shown)})" if shown else ""
    classes = f", {data.classes} classes{names}" if data.classes else ""
    counts = f"{data.count_training_records():,} training records, {data.test_description.records:,} test records"
    other_streams = [
        f"{row['stream']:<9} {row['records']:,} records of {row['split']!r}"
        for row in data.summary()
        if row["stream"] not in ("train", "test")
    ]
    cut = [
        f"cut       {row['truncated']:,} of {row['records']:,} texts of {row['split']!r} are longer than a row: raise "
        "length in data.tokens to keep their ends"
        for row in data.summary()
        if row["truncated"]
    ]
    unused = ", ".join(
        f"{size:,} record{'s' * (size != 1)} of the split {name!r}" for name, size in data.unused_splits.items()
    )
    lines = [f"data      {counts}{classes}", *other_streams, *cut, *([f"unused    {unused}"] if unused else [])]
    for stage in resolved.stages:
        size = sum(x.size for x in jax.tree.leaves(stage.view.train_state.params["student"]))
        model = stage.definition.config.student.model
        lines.append(f"{stage.name:<9} {stage.settings.steps:,} steps, {count(size).strip()} parameters: {model}")
    lines += [f"{name:<9} left out: {reason}" for name, reason in resolved.left_out.items()]
    return "\n".join([*lines, "The config is right. Nothing was trained."]) + "\n"


def _connect(config: Config) -> None:
    """Connect the processes of a run with several processes, before JAX uses a device."""
    distributed = config.distributed
    if not distributed.coordinator:
        return
    address, count, number = distributed.coordinator, distributed.processes, distributed.process
    try:
        if address == "auto":
            jax.distributed.initialize(initialization_timeout=distributed.timeout)
        else:
            wait_for_all(address, count, number, distributed.timeout)
            jax.distributed.initialize(address, count, number, initialization_timeout=distributed.timeout)
    except ConfigError:
        raise
    except (ValueError, RuntimeError) as error:
        raise ConfigError("distributed", f"the processes could not connect: {error}") from None
