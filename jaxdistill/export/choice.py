"""Choose an export format, its runtime and a target device, after checking that their packages are installed."""

from collections.abc import Sequence

import jaxdistill.export.devices
import jaxdistill.export.formats  # noqa: F401  (importing registers the formats)
from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError, suggest
from jaxdistill.export.device_profile import Device, check_device
from jaxdistill.export.measure import is_installed, package_of
from jaxdistill.export.network import Definition, Exporter


def choose(spec: str, runtime: str, path: str, runtime_path: str) -> Exporter:
    """Build the exporter of a format, with the one runtime that will run its file.

    Args:
        spec: spec string of the format, such as `onnx(int8='dynamic')`.
        runtime: name of the runtime, such as `onnxruntime`; empty for the format's first one.
        path, runtime_path: config keys, or options of the command line, with spec and runtime, for error messages.

    Raises:
        ConfigError: there is no such format or runtime, or a package is missing.
    """
    if spec.partition("(")[0] == "hugging_face":
        raise ConfigError(path, "every run has written its models for Hugging Face: see the folder hub of the model.")
    exporter: Exporter = registry.exporters.build(spec, path)
    if runtime and runtime not in exporter.runtimes:
        cure = suggest(runtime, exporter.runtimes)
        raise ConfigError(runtime_path, f"{runtime!r} does not run {spec}. {cure}")
    chosen = runtime or exporter.runtimes[0]
    for package in dict.fromkeys((*exporter.packages, package_of(chosen))):
        if not is_installed(package):
            extra = "openvino" if package == "openvino" else spec.partition("(")[0]
            raise ConfigError(path, f"{spec} needs the package {package}: pip install 'jaxdistill[{extra}]'.")
    return exporter._replace(runtimes=(chosen,))


def choose_device(spec: str, path: str, formats: Sequence[str] = ()) -> Device:
    """Build the profile of the target device that a spec string names, and check that it takes the formats.

    Args:
        spec: spec string of the device, such as `cpu(threads=1)`.
        path: config key, or option of the command line, with the spec, for error messages.
        formats: spec strings of the formats that are exported.

    Raises:
        ConfigError: there is no such device, the device does not take a format, or a package is missing.
    """
    device: Device = registry.devices.build(spec, path)
    for to in formats:
        check_device(device, spec, to, 0, "", path)
    for package in device.packages:
        if not is_installed(package):
            cure = f"pip install 'jaxdistill[{device.extra}]'"
            raise ConfigError(path, f"{spec} needs the package {package}: {cure}.")
    return device


def check_model(exporter: Exporter, spec: str, model: str, definition: Definition | None, path: str) -> None:
    """Require that a model can be exported to a format.

    Args:
        exporter: the export format.
        spec: spec string of the format.
        model: name of the model, such as "student".
        definition: architecture of the model; None if the model has no Hugging Face format.
        path: config key, or option of the command line, with the spec of the format, for error messages.

    Raises:
        ConfigError: the format cannot hold the model; the message says why.
    """
    if exporter.refuse and (reason := exporter.refuse(definition)):
        raise ConfigError(path, f"{spec} cannot hold {model}: {reason}")
