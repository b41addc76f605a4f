"""List the operations of an exported file, each with the layer of the model that it belongs to."""

import re
from pathlib import Path

FORMATS = {"litert": "ai_edge_litert", "onnx": "onnx"}  # format: the package that reads it
LAYER = re.compile(r"((?:blocks|layers|stages)/\d+(?:/[a-z_]\w*)*|[a-z_]\w*(?:/[a-z_]\w*)+)/[a-z_]\w*")


def operations(file: Path) -> list[tuple[str, str]]:
    """List the operations of an exported file, in order, as tuples `(name of the operation, layer of the model)`.

    The layer is an empty text if the file does not name it.

    Args:
        file: a LiteRT or an ONNX file.
    """
    if file.suffix == ".onnx":
        import onnx

        graph, layer, operations = onnx.load(file, load_external_data=False).graph, "", []
        weights = {each.name for each in graph.initializer if not each.name.startswith("constant/")}
        for node in graph.node:  # an operation belongs to the layer whose weights were read last
            read = [name.removeprefix("params/").rpartition("/")[0] for name in node.input if name in weights]
            layer = read[0] if read else layer
            operations.append((node.op_type, layer))
        return operations
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    # Without the delegates that would replace operations by their own.
    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_path=str(file), experimental_op_resolver_type=resolver)
    names = {tensor["index"]: tensor["name"] for tensor in interpreter.get_tensor_details()}
    details = interpreter._get_ops_details()  # the package has no public list of them
    return [(each["op_name"], layer_of(names.get(each["outputs"][0], ""))) for each in details]


def layer_of(name: str) -> str:
    """Extract the layer from the name of a tensor or node: `jit(f)/blocks/0/mlp/up/add` gives `blocks/0/mlp/up`.

    The result is an empty text if the name has no layer.
    """
    first = name.partition(";")[0].partition("jit(")
    match = LAYER.match(re.sub(r"^[^/]*\)/", "", first[2]) if first[1] else first[2])
    return match[1] if match else ""
