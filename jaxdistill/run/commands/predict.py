"""Use a trained model: write its predictions for all records of a file.

jaxdistill predict RUN --input FILE --output FILE

RUN is the folder of a run. The input is CSV, TSV, JSON lines, Parquet, npz or a folder of images; the columns that the
model reads are those of its training data, unless --text, --image or --features name others. The output repeats the
columns of the input, except images and arrays, and adds `prediction` and `confidence`; in JSON lines, Parquet and npz
also `probabilities`. A model without classes adds `embedding`, and a language model `nll` and `perplexity`.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jaxdistill.core.errors import ConfigError
from jaxdistill.run import failures
from jaxdistill.run.commands.cli import Parser

EPILOG = """
examples:
  jaxdistill predict runs/reviews --input new.csv --output predicted.csv
  jaxdistill predict runs/reviews --model control --input new.jsonl --output predicted.jsonl --text body
  jaxdistill predict runs/pets --input photos/ --output predicted.parquet
  jaxdistill predict runs/clip --input photos/ --image image --output predicted.csv --classes "cat,dog"
"""


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command `jaxdistill predict`, which writes a model's predictions for a file, and return its exit code.

    Args:
        argv: arguments of the command; None means `sys.argv[1:]`.
    """
    parser = Parser("jaxdistill predict", __doc__, EPILOG)
    names = lambda text: tuple(name.strip() for name in text.split(","))
    columns = lambda text: tuple(name for name in text.split(",") if name)
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run, or of a model, such as RUN/student/hub")
    parser.add_argument("--input", required=True, metavar="FILE", help="the records")
    parser.add_argument("--output", required=True, metavar="FILE", type=Path, help="where the predictions are written")
    parser.add_argument("--model", default="student", help="student, control, or teachers/NAME; default: student")
    parser.add_argument("--text", default=(), metavar="COLUMN,...", type=columns, help="columns of texts")
    parser.add_argument("--image", default=(), metavar="COLUMN", type=columns, help="column of images")
    parser.add_argument("--features", default=(), metavar="COLUMN,...", type=columns, help="columns of numbers")
    parser.add_argument("--classes", default=None, metavar="NAME,...", type=names, help="classify images by these "
                        "texts (zero-shot); for a model of images and texts")  # fmt: skip
    parser.add_argument("--template", default=[], metavar="TEXT", action="append", help="text of a class, with {} for "
                        "its name, such as 'a picture of a {}'; may be repeated; default: the name")  # fmt: skip
    parser.add_argument("--encoding", default="utf-8", help="encoding of the input, such as latin-1; default: utf-8")
    parser.add_argument("--delimiter", default="", help="character between values of a CSV file; default: a comma")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    parser.add_argument("--trust-source", action="store_true", help="run the Python file that the run has kept")
    options = parser.parse_args(argv)

    def work() -> int:
        if options.template and options.classes is None:
            raise ConfigError("--template", "a template needs --classes, which is not set. Set both, or neither.")
        if options.run.is_file():
            raise ConfigError("RUN", f"{str(options.run)!r} is a file. Give the folder of a run, as in --workdir.")
        from jaxdistill.export.zero_shot import PLACE, check_classes

        templates = tuple(options.template) or (PLACE,)
        if options.classes is not None:
            check_classes(options.classes, templates)
            for option, names in (("--text", options.text), ("--features", options.features)):
                if names:
                    raise ConfigError(option, "is not read with --classes, which needs images alone. Leave it out.")
        from jaxdistill.run.output_checks import check_output
        from jaxdistill.run.predict import load  # imports JAX, after the arguments are checked

        check_output(options.output, "--output", options.overwrite)

        from jaxdistill.export.prediction_files import check_format, predict_file

        check_format(options.output)
        predictor, start = load(options.run, options.model, options.trust_source), time.perf_counter()
        from jaxdistill.data.table.record_reader import TextFormat

        named = {"text": options.text, "image": options.image, "features": options.features}
        chosen = {argument: names for argument, names in named.items() if names}
        text_format = TextFormat(options.encoding, options.delimiter)
        if options.classes is not None:
            predictor = predictor.zero_shot(options.classes, templates)
        count = predict_file(predictor, options.input, options.output, chosen, text_format)
        seconds = time.perf_counter() - start
        sys.stdout.write(f"{count:,} records in {seconds:.1f} s; predictions are in {options.output}\n")
        return 0

    return failures.run(work, options.debug)
