"""The structs of XLA's interface that normx declares are those of jaxlib's headers."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native"

#: Our struct, theirs, and the names of the fields, ours and theirs in order.
STRUCTS = {
    ("Extension", "XLA_FFI_Extension_Base"): "struct_size type next",
    ("Version", "XLA_FFI_Api_Version"): "struct_size extensions=extension_start "
    "major=major_version minor=minor_version",
    ("TypeId", "XLA_FFI_TypeId"): "id=type_id",
    ("Metadata", "XLA_FFI_Metadata"): "struct_size version=api_version traits "
    "state_type=state_type_id",
    ("MetadataExtension", "XLA_FFI_Metadata_Extension"): "base=extension_base metadata",
    ("Buffer", "XLA_FFI_Buffer"): "struct_size extensions=extension_start dtype data rank dims",
    ("Buffers", "XLA_FFI_Args"): "struct_size extensions=extension_start size types values=args",
    ("Buffers ", "XLA_FFI_Rets"): "struct_size extensions=extension_start size types values=rets",
    ("Bytes", "XLA_FFI_ByteSpan"): "data=ptr size=len",
    ("Scalar", "XLA_FFI_Scalar"): "dtype value",
    ("Array", "XLA_FFI_Array"): "dtype size data",
    ("Attributes", "XLA_FFI_Attrs"): "struct_size extensions=extension_start size types names "
    "values=attrs",
    ("ErrorArgs", "XLA_FFI_Error_Create_Args"): "struct_size extensions=extension_start message "
    "code=errc",
    # Of these two, what comes after is not ours to know.
    ("Api", "XLA_FFI_Api"): "struct_size extensions=extension_start version=api_version "
    "internal=internal_api create_error=XLA_FFI_Error_Create",
    ("CallFrame", "XLA_FFI_CallFrame"): "struct_size extensions=extension_start api context=ctx "
    "stage arguments=args results=rets attributes=attrs",
}
VALUES = {
    "ExtensionType::metadata": "XLA_FFI_Extension_Metadata",
    "DataType::boolean": "XLA_FFI_DataType_PRED",
    "DataType::s64": "XLA_FFI_DataType_S64",
    "DataType::f16": "XLA_FFI_DataType_F16",
    "DataType::f32": "XLA_FFI_DataType_F32",
    "DataType::f64": "XLA_FFI_DataType_F64",
    "DataType::bf16": "XLA_FFI_DataType_BF16",
    "AttributeType::array": "XLA_FFI_AttrType_ARRAY",
    "AttributeType::scalar": "XLA_FFI_AttrType_SCALAR",
    "AttributeType::string": "XLA_FFI_AttrType_STRING",
    "ErrorCode::invalid_argument": "XLA_FFI_Error_Code_INVALID_ARGUMENT",
    "ErrorCode::internal": "XLA_FFI_Error_Code_INTERNAL",
    "Stage::execute": "XLA_FFI_ExecutionStage_EXECUTE",
    "is_buffer": "XLA_FFI_ArgType_BUFFER",
    "is_buffer ": "XLA_FFI_RetType_BUFFER",
}


def checks():
    """A static assertion for each struct, field and value."""
    for (struct, theirs), names in STRUCTS.items():
        ours = f"normx::xla::{struct.strip()}"
        for name in names.split():
            own, _, other = name.partition("=")
            at = f"offsetof({ours}, {own}) == offsetof({theirs}, {other or own})"
            size = f"sizeof({ours}::{own}) == sizeof({theirs}::{other or own})"
            yield f"static_assert({at});"
            if not own.startswith(("arguments", "results", "attributes")):
                yield f"static_assert({size});"
        if ours not in ("normx::xla::Api", "normx::xla::CallFrame"):
            yield f"static_assert(sizeof({ours}) == sizeof({theirs}));"
    for ours, theirs in VALUES.items():
        yield f"static_assert(static_cast<int>(normx::xla::{ours.strip()}) == {theirs});"


def test_declarations_are_those_of_jaxlib(tmp_path):
    jaxlib = pytest.importorskip("jaxlib", reason="needs the headers of jaxlib")
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None or not NATIVE.is_dir():
        pytest.skip("needs a C++ compiler and the sources")
    source = tmp_path / "check.cpp"
    include = '#include <cstddef>\n#include "xla/ffi/api/c_api.h"\n#include "bind/xla_ffi.hpp"\n'
    source.write_text(include + "\n".join(checks()) + "\n", "utf-8")
    headers = Path(jaxlib.__file__).parent / "include"
    command = [compiler, "-std=c++20", "-fsyntax-only", f"-I{headers}", f"-I{NATIVE}", str(source)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_every_declaration_is_checked():
    if not NATIVE.is_dir():
        pytest.skip("needs the sources")
    header = (NATIVE / "bind" / "xla_ffi.hpp").read_text("utf-8")
    declared = set(re.findall(r"^struct (\w+) \{", header, re.MULTILINE))
    assert declared == {ours.strip() for ours, _ in STRUCTS}
