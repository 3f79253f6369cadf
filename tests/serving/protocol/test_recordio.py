"""Class probabilities as the built-in algorithm gives them, read by AWS's own message class and by mxnet's framing."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from pspnet.serving.protocol import recordio
from pspnet.serving.protocol.recordio import TooLongError, encode_probabilities, encoded_size


def unframed(body: bytes) -> bytes:
    """The one record of a RecordIO stream, read as dmlc-core reads it."""
    magic, length = struct.unpack("<II", body[:8])
    assert magic == 0xCED7230A
    assert length >> 29 == 0  # a whole record
    assert len(body) == 8 + length + (-length % 4)
    assert not any(body[8 + length :])
    return body[8 : 8 + length]


def record_class() -> Any:
    """`Record` of aialgs.data, built here from its published definition."""
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
    """The steps of AWS's example notebook."""
    record.ParseFromString(unframed(body))
    assert set(record.features) == {"target", "shape"}
    assert not record.label
    values = np.array(list(record.features["target"].float32_tensor.values), dtype=np.float32)
    shape = list(record.features["shape"].int32_tensor.values)
    return values.reshape(shape)


def shares(classes: int, height: int, width: int) -> np.ndarray:
    values = np.random.default_rng(classes).random((classes, height, width), dtype=np.float32)
    return values / values.sum(axis=0)


@pytest.mark.parametrize("shape", [(2, 1, 1), (3, 5, 7), (21, 37, 41), (254, 3, 2), (5, 300, 2), (11, 96, 128)])
def test_googles_decoder_reads_shape_and_values(shape: tuple[int, int, int]) -> None:
    probabilities = shares(*shape)
    found = decoded(encode_probabilities(probabilities), record_class()())
    assert found.shape == (1, *shape)
    np.testing.assert_array_equal(found[0], probabilities)


def test_awss_own_message_class_reads_it() -> None:
    record_pb2 = pytest.importorskip("sagemaker_training.record_pb2")
    probabilities = shares(21, 60, 80)
    found = decoded(encode_probabilities(probabilities), record_pb2.Record())
    np.testing.assert_array_equal(found[0], probabilities)


def test_the_same_bytes_as_googles_encoder() -> None:
    """But for the order of the map's entries, which protocol buffers leave open."""
    probabilities = shares(3, 50, 7)
    record = record_class()()
    record.features["target"].float32_tensor.values.extend(probabilities.ravel().tolist())
    target = record.SerializeToString()
    record = record_class()()
    record.features["shape"].int32_tensor.values.extend([1, 3, 50, 7])
    assert unframed(encode_probabilities(probabilities)) == target + record.SerializeToString()


def test_layout_and_type_of_the_array_do_not_matter() -> None:
    probabilities = shares(3, 5, 7)
    expected = encode_probabilities(probabilities)
    assert encode_probabilities(np.asfortranarray(probabilities)) == expected
    assert encode_probabilities(probabilities.astype(np.float64)) == expected


@pytest.mark.parametrize("shape", [(2, 1, 1), (21, 240, 240), (254, 65_500, 1)])
def test_the_size_is_known_before(shape: tuple[int, int, int]) -> None:
    size = len(encode_probabilities(np.zeros(shape, np.float32)))
    assert size <= encoded_size(*shape) <= size + 100


def test_more_than_a_frame_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordio, "_MAX_LENGTH", 1000)
    with pytest.raises(TooLongError, match="bytes of probabilities do not fit into one record"):
        encode_probabilities(shares(3, 10, 10))
