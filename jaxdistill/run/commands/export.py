"""Write a trained model in the format of another runtime, run it on the test records, and report how good it is.

jaxdistill export RUN --to onnx
jaxdistill export RUN --to onnx --to "onnx(int8='dynamic')" --to stablehlo --model student --model teachers/minilm
jaxdistill export RUN --to "gguf(kind='Q8_0')"
jaxdistill export RUN --to "litert(int8='static')" --device "ethos_u65()"

Each file is run in a process of its own: its accuracy, bytes, latency and memory stand beside the model's. A file that
disagrees with its model beyond a bound is set aside, and the message says where it differs. RUN/student/exports/onnx
then holds the file, the preprocessing, the class names and what was measured. For Hugging Face, every run writes the
folder RUN/student/hub.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from jaxdistill.core.errors import ConfigError
from jaxdistill.run import failures
from jaxdistill.run.commands.cli import Parser

EPILOG = """
formats: see jaxdistill list exporters. Bounds: a file in floats may differ by 1e-4 of the greatest output and must give
the same answers; one with 8-bit integers must give 99 % of the answers, and may lose half a point of accuracy.
The next token's distribution of a language model with rounded weights may diverge by 0.01 nats, the mean over tokens.
devices: see jaxdistill list devices. A device says which formats it takes, and which operations of a file it runs:
"cpu(threads=2)", "ethos_u65()", or your own: "own(operations_of='litert', known=('CONV_2D', 'ADD'), megabytes=1)".
"""


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command `jaxdistill export`, which writes and measures files of trained models; return its exit code.

    Args:
        argv: arguments of the command; None means `sys.argv[1:]`.
    """
    parser = Parser("jaxdistill export", __doc__, EPILOG)
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a finished run")
    parser.add_argument("--to", action="append", required=True, metavar="FORMAT", help="such as onnx; may be repeated")
    parser.add_argument(
        "--model", action="append", help="student, control, floats, or teachers/NAME; default: student; may be repeated"
    )
    parser.add_argument("--runtime", default="", metavar="NAME", help="what runs the file; default: the first that can")
    parser.add_argument("--device", default="", metavar="SPEC", help="what the files are made for; see devices below")
    parser.add_argument("--threads", default=None, type=int, help="processors that each file may use; default: 1")
    parser.add_argument("--records", default=0, type=int, help="number of test records; default: all")
    parser.add_argument("--trust-source", action="store_true", help="run the Python file that the run has kept")
    options = parser.parse_args(argv)

    def work() -> int:
        from jaxdistill.run.export_run import Options, export  # imports JAX, after the arguments are checked

        if options.threads is not None and options.threads < 1:
            raise ConfigError("--threads", f"{options.threads} is not positive. Give 1 or more.")
        chosen = Options(options.runtime, options.threads or 0, options.records, options.trust_source, options.device)
        sys.stdout.write(export(options.run, options.model or ["student"], options.to, chosen))
        return 0

    return failures.run(work, options.debug, str(options.run))
