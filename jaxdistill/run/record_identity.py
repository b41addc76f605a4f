"""Detect that the records of a run have changed since it began: RUN/records.json."""

from pathlib import Path

import jax

from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError, DamageError
from jaxdistill.core.notes import note
from jaxdistill.data.pipeline import TEST, Pipeline, Stream

FILE = "records.json"


def check_records(workdir: Path, data: Pipeline) -> None:
    """Check that the records of a resumed or repeated run are those with which it began, by hashes of their content.

    A new run writes the hashes to `FILE`. A damaged or missing file is written again, with a note.

    Args:
        workdir: folder of the run.
        data: data pipeline of the run.

    Raises:
        ConfigError: records have changed; what was measured before would stand beside what is measured now.
    """
    streams = {**data.streams, TEST: data.test}
    found = {name: contents for name, stream in streams.items() if (contents := _contents(data, stream))}
    try:
        known = seal.read(workdir / FILE, {"contents": dict})["contents"]
    except (FileNotFoundError, DamageError) as error:
        known = {}
        if any(workdir.glob("**/checkpoints/manifests/*.json")):
            state = "is missing" if isinstance(error, FileNotFoundError) else "is damaged"
            note(f"{workdir / FILE} {state}: nobody can tell whether the run began with these records")
    if changed := [name for name in found if known.get(name, found[name]) != found[name]]:
        problem = f"the records of {' and '.join(changed)} have changed since the run in {str(workdir)!r} began"
        raise ConfigError("data.name", f"{data.name!r}: {problem}. Restore them, or choose another --workdir.")
    if jax.process_index() == 0 and known != found:
        seal.write(workdir / FILE, {"contents": {**known, **found}})


def _contents(data: Pipeline, stream: Stream) -> str:
    try:
        return data.identity(stream)["contents"]
    except (ConfigError, DamageError):  # the raw records are gone, such as behind a cache of tokens
        return ""
