"""Tests of devices: what does not fit is refused before conversion, and missing operations are named by layer."""

import jax
import pytest
from batches import drawn

import jaxdistill.export.devices
import jaxdistill.export.formats
from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.types import Variables
from jaxdistill.evaluation.report.exports import devices
from jaxdistill.export.device_profile import check_device
from jaxdistill.export.devices.ethos_u65 import report
from jaxdistill.export.network import network_of
from jaxdistill.export.operations import layer_of, operations

SUMMARY = {
    "inference_time": "0.001218638",
    "cycles_total": "1218638",
    "sram_memory_used": "269.0",
    "dram_memory_used": "1986.98",
}
OPERATIONS = [
    {"Original Operator": "Add", "Target": "NPU", "Name": "jit(<lambda>)/blocks/0/mlp/up/add"},
    {"Original Operator": "Cast", "Target": "CPU", "Name": "jit(<lambda>)/blocks/0/mlp/up/cast;jit(<lambda>)/and"},
    {"Original Operator": "Foo", "Target": "CPU", "Name": "jit(<lambda>)/foo"},
]
OUTPUT = """
Warning (supported operators) operator: CAST, ofm: 'jit(<lambda>)/blocks/0/mlp/up/cast;jit(<lambda>)/and'
Reason: Operation has tensor with unsupported DataType Bool8 (jit(<lambda>)/gt1)
Warning (supported operators) operator: FOO, ofm: 'jit(<lambda>)/foo'
Reason: Unsupported opType
"""


def test_every_device_is_described():
    assert set(registry.devices) == {"cpu", "ethos_u65", "own"} == set(jaxdistill.export.devices.__all__)


def test_what_vela_says_is_read_with_layers_and_reasons():
    found = report(SUMMARY, OPERATIONS, OUTPUT)
    assert found.operations == 3 and [each.operation for each in found.refused] == ["CAST", "FOO"]
    assert found.refused[0].layer == "blocks/0/mlp/up" and found.refused[0].reason == "a tensor is bool8"
    assert found.numbers == {"cycles": "1,218,638", "SRAM": "269 KiB", "DRAM": "1,987 KiB"}
    assert found.milliseconds == pytest.approx(1.218638)
    entry = {"model": "student", "name": "litert", "device": {"name": "ethos_u65()", **found.as_json()}}
    (text,) = devices([entry, {"model": "student", "name": "onnx"}])
    assert text.splitlines()[0].startswith("student, litert on ethos_u65(): 1 of 3 operations (33.3 %), estimated time")
    assert "CAST in blocks/0/mlp/up (a tensor is bool8): it prepares inputs, such as an attention mask" in text
    assert "FOO: give the model another layer, or leave this one to the processor" in text


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("jit(<lambda>)/blocks/1/attention/value/mul;jit(<lambda>)/x", "blocks/1/attention/value"),
        ("jit(<lambda>)/embed/token/gather_quantized", "embed/token"),
        ("jit(<lambda>)/tanh", ""),
        ("tfl.add", ""),
    ],
)
def test_the_layer_is_in_the_name(name, layer):
    assert layer_of(name) == layer


@pytest.mark.parametrize(
    ("spec", "to", "said"),
    [
        ("ethos_u65()", "onnx(int8='static')", "takes litert, no onnx. Change the format."),
        ("ethos_u65()", "litert", "computes with integers alone. Export litert(int8='static') instead of litert."),
        ("cpu(megabytes=0.5)", "onnx", "has 0.5 MB for weights, and those of student take at least 0.8 MB. Make"),
        (
            "cpu(megabytes=0.1)",
            "onnx(int8='dynamic')",
            "0.1 MB for weights, and those of student take at least 0.2 MB",
        ),
        ("cpu(megabytes=0.1)", "gguf('Q8_0')", "has 0.1 MB for weights, and those of student take"),
    ],
)
def test_a_device_refuses_before_anything_is_converted(spec, to, said, monkeypatch):
    monkeypatch.setattr("jaxdistill.export.choice.is_installed", lambda package: True)
    device = registry.devices.build(spec, "--device")
    with pytest.raises(ConfigError) as error:
        check_device(device, spec, to, 200_000, "student", "--device")
    assert str(error.value).startswith(f"--device: {spec} ") and said in str(error.value)


@pytest.mark.parametrize(
    ("spec", "to"),
    [("ethos_u65()", "litert('static')"), ("cpu(megabytes=0.05)", "gguf(kind='TQ2_0')"), ("cpu()", "stablehlo")],
)
def test_a_device_takes_what_fits(spec, to):
    check_device(registry.devices.build(spec, "--device"), spec, to, 200_000, "student", "--device")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("cpu(threads=0)", "threads=0: this process has"),
        ("cpu(megabytes=-1.0)", "megabytes=-1.0 is negative"),
        ("ethos_u65(macs=100)", "expected one of 256, 512"),
        ("ethos_u65(megabytes=-1.0)", "is negative"),
        ("own(operations_of='gguf')", "give 'litert' or 'onnx'"),
        ("own(megabytes=-1.0)", "is negative"),
        ("own(operations_of='onnx', integers=True)", "an ONNX file keeps floats between its integers"),
        ("own(operations_of='onnx', known=('matmul',))", "known has 'matmul', which is no operation of ONNX"),
        ("ethos_u56()", "unknown device 'ethos_u56'. Did you mean 'ethos_u65'?"),
    ],
)
def test_a_wrong_device_is_refused(spec, said):
    with pytest.raises(ConfigError) as error:
        registry.devices.build(spec, "--device")
    assert said in str(error.value)


def test_your_own_device_names_what_it_lacks(tmp_path):
    pytest.importorskip("onnx")
    fields = {"image": ((8, 8, 1), "float32"), "mask": ((), "float32")}
    model = registry.models.build("mlp(widths=(16,), classes=3)", "model")
    batch = {name: jax.ShapeDtypeStruct((2, *shape), dtype) for name, (shape, dtype) in fields.items()}
    values = drawn(Variables(*jax.eval_shape(model.init, jax.random.key(0), batch)), 0)
    registry.exporters.build("onnx", "").write(network_of(model, values, fields), tmp_path / "x.onnx", tuple)
    names = {name for name, _ in operations(tmp_path / "x.onnx")}
    whole = registry.devices.build(f"own(operations_of='onnx', known={tuple(sorted(names))})", "")
    assert whole.inspect(tmp_path / "x.onnx").refused == ()
    activation = next(name for name in names if name in ("Relu", "Max"))
    rest = registry.devices.build(f"own(operations_of='onnx', known={tuple(sorted(names - {activation}))})", "")
    (refused,) = rest.inspect(tmp_path / "x.onnx").refused
    assert refused.operation == activation and refused.layer == "layers/0"


def test_each_operation_counts_though_its_sentence_is_said_once():
    twice = report(SUMMARY, [*OPERATIONS, {**OPERATIONS[2], "Name": "jit(<lambda>)/bar"}], OUTPUT).as_json()
    assert (twice["operations"], twice["on_device"], len(twice["refused"])) == (4, 1, 3)
    again = report(SUMMARY, [*OPERATIONS, OPERATIONS[2]], OUTPUT).as_json()
    assert (again["operations"], again["on_device"], len(again["refused"])) == (4, 1, 2)


def test_threads_and_products_are_those_that_were_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2})
    assert registry.devices.build("cpu(threads=2)", "").threads == 2
    commands = []

    def run(command, **options):
        commands.append(command)
        raise RuntimeError

    monkeypatch.setattr("subprocess.run", run)
    for spec, name in (("ethos_u65()", "ethos-u65-256"), ("ethos_u65(macs=512)", "ethos-u65-512")):
        with pytest.raises(RuntimeError):
            registry.devices.build(spec, "").inspect(tmp_path / "x.tflite")
        assert name in commands[-1]


def test_a_device_of_all_operations_refuses_none(tmp_path):
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node("Add", ["x", "x"], ["y"])
    value = lambda name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([node], "g", [value("x")], [value("y")])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "x.onnx")
    found = registry.devices.build("own(operations_of='onnx')", "").inspect(tmp_path / "x.onnx")
    assert found.refused == () and found.operations == 1 and found.numbers == {"operations of the file": "1 Add"}
