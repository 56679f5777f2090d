"""Parses SentencePiece model files without importing the protobuf module that the package generates for them.

That module rejects any version of protobuf older than the one that generated it, and Apache Beam requires an older one.
The schema inside the module does not depend on the version, so it is extracted from the source.
"""

import ast
import functools
import importlib.util
from pathlib import Path
from typing import Any


def parse_model(content: bytes) -> Any:
    """Returns the ModelProto in the content of a .model file. Raises an error of protobuf if it is not valid."""
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
