"""Tests of the RecordIO encoder against AWS's message class, protobuf and mxnet's framing."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from pspnet.serving.protocol import recordio
from pspnet.serving.protocol.recordio import TooLongError, encode_probabilities, encoded_size


def unframed(body: bytes) -> bytes:
    """Return the only record of a RecordIO stream, read like dmlc-core."""
    magic, length = struct.unpack("<II", body[:8])
    assert magic == 0xCED7230A
    assert length >> 29 == 0  # a complete record
    assert len(body) == 8 + length + (-length % 4)
    assert not any(body[8 + length :])
    return body[8 : 8 + length]


def record_class() -> Any:
    """Build `Record` of aialgs.data from its published definition."""
    label, kind = descriptor_pb2.FieldDescriptorProto, descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="test_record.proto", package="test.aialgs", syntax="proto2")
    for name, values in (("Float32Tensor", kind.TYPE_FLOAT), ("Float64Tensor", kind.TYPE_DOUBLE),
                         ("Int32Tensor", kind.TYPE_INT32)):  # fmt: skip
        tensor = file.message_type.add(name=name)
        for number, (field, type_) in enumerate(
            (("values", values), ("keys", kind.TYPE_UINT64), ("shape", kind.TYPE_UINT64)), start=1
        ):
            tensor.field.add(name=field, number=number, type=type_, label=label.LABEL_REPEATED).options.packed = True
    value = file.message_type.add(name="Value")
    value.oneof_decl.add(name="value")
    for name, number, type_ in (("float32_tensor", 2, "Float32Tensor"), ("float64_tensor", 3, "Float64Tensor"),
                                ("int32_tensor", 7, "Int32Tensor")):  # fmt: skip
        value.field.add(name=name, number=number, type=kind.TYPE_MESSAGE, type_name=f".test.aialgs.{type_}",
                        label=label.LABEL_OPTIONAL, oneof_index=0)  # fmt: skip
    record = file.message_type.add(name="Record")
    for number, name in ((1, "Features"), (2, "Label")):
        entry = record.nested_type.add(name=f"{name}Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=kind.TYPE_STRING, label=label.LABEL_OPTIONAL)
        entry.field.add(name="value", number=2, type=kind.TYPE_MESSAGE, type_name=".test.aialgs.Value",
                        label=label.LABEL_OPTIONAL)  # fmt: skip
        record.field.add(name=name.lower(), number=number, type=kind.TYPE_MESSAGE, label=label.LABEL_REPEATED,
                         type_name=f".test.aialgs.Record.{name}Entry")  # fmt: skip
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("test.aialgs.Record"))


def decoded(body: bytes, record: Any) -> np.ndarray:
    """Decode as in AWS's example notebook."""
    record.ParseFromString(unframed(body))
    assert set(record.features) == {"target", "shape"}
    assert not record.label
    values = np.array(list(record.features["target"].float32_tensor.values), dtype=np.float32)
    shape = list(record.features["shape"].int32_tensor.values)
    return values.reshape(shape)


def random_probabilities(classes: int, height: int, width: int) -> np.ndarray:
    values = np.random.default_rng(classes).random((classes, height, width), dtype=np.float32)
    return values / values.sum(axis=0)


@pytest.mark.parametrize("shape", [(2, 1, 1), (3, 5, 7), (21, 37, 41), (254, 3, 2), (5, 300, 2), (11, 96, 128)])
def test_protobuf_decodes_shape_and_values(shape: tuple[int, int, int]) -> None:
    probabilities = random_probabilities(*shape)
    found = decoded(encode_probabilities(probabilities), record_class()())
    assert found.shape == (1, *shape)
    np.testing.assert_array_equal(found[0], probabilities)


def test_sagemaker_message_class_decodes_it() -> None:
    record_pb2 = pytest.importorskip("sagemaker_training.record_pb2")
    probabilities = random_probabilities(21, 60, 80)
    found = decoded(encode_probabilities(probabilities), record_pb2.Record())
    np.testing.assert_array_equal(found[0], probabilities)


def test_bytes_equal_those_of_protobuf() -> None:
    """Except for the order of map entries, which protobuf leaves unspecified."""
    probabilities = random_probabilities(3, 50, 7)
    record = record_class()()
    record.features["target"].float32_tensor.values.extend(probabilities.ravel().tolist())
    target = record.SerializeToString()
    record = record_class()()
    record.features["shape"].int32_tensor.values.extend([1, 3, 50, 7])
    assert unframed(encode_probabilities(probabilities)) == target + record.SerializeToString()


def test_array_layout_and_dtype_do_not_matter() -> None:
    probabilities = random_probabilities(3, 5, 7)
    expected = encode_probabilities(probabilities)
    assert encode_probabilities(np.asfortranarray(probabilities)) == expected
    assert encode_probabilities(probabilities.astype(np.float64)) == expected


@pytest.mark.parametrize("shape", [(2, 1, 1), (21, 240, 240), (254, 65_500, 1)])
def test_encoded_size_is_an_upper_bound(shape: tuple[int, int, int]) -> None:
    size = len(encode_probabilities(np.zeros(shape, np.float32)))
    assert size <= encoded_size(*shape) <= size + 100


def test_record_larger_than_a_frame_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordio, "_MAX_LENGTH", 1000)
    with pytest.raises(TooLongError, match="bytes of probabilities do not fit into one record"):
        encode_probabilities(random_probabilities(3, 10, 10))
