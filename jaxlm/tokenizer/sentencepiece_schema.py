"""The class of SentencePiece's model files, without the module that its package has for it.

That module refuses every protobuf older than the one that generated it, and Apache Beam holds an older one; the schema
in it is the same for all.
"""

import ast
import functools
import importlib.util
from pathlib import Path
from typing import Any


def parse_model(content: bytes) -> Any:
    """Returns the ModelProto of a .model file."""
    return _model_class().FromString(content)


@functools.cache
def _model_class() -> Any:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    spec = importlib.util.find_spec("sentencepiece")
    assert spec
    assert spec.origin
    module = ast.parse(Path(spec.origin).with_name("sentencepiece_model_pb2.py").read_text(encoding="utf-8"))
    schema = next(
        node.args[0].value
        for node in ast.walk(module)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "AddSerializedFile"
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, bytes)
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(descriptor_pb2.FileDescriptorProto.FromString(schema))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("sentencepiece.ModelProto"))
