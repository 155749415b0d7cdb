"""The structs of DLPack that normx declares are those of a library's headers."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native"

#: Our struct, theirs, and the names of the fields, ours and theirs in order.
STRUCTS = {
    ("Version", "DLPackVersion"): "major minor",
    ("Device", "DLDevice"): "type=device_type id=device_id",
    ("DataType", "DLDataType"): "code bits lanes",
    ("Tensor", "DLTensor"): "data device ndim dtype shape strides byte_offset",
    ("ManagedTensor", "DLManagedTensorVersioned"): "version context=manager_ctx deleter flags "
    "tensor=dl_tensor",
    ("ExchangeHeader", "DLPackExchangeAPIHeader"): "version older=prev_api",
    ("Exchange", "DLPackExchangeAPI"): "header allocate=managed_tensor_allocator "
    "managed_from_object=managed_tensor_from_py_object_no_sync "
    "to_object=managed_tensor_to_py_object_no_sync "
    "from_object=dltensor_from_py_object_no_sync current_stream=current_work_stream",
}


def checks():
    """A static assertion for each struct and field."""
    for (struct, theirs), names in STRUCTS.items():
        ours = f"normx::dlpack::{struct}"
        for name in names.split():
            own, _, other = name.partition("=")
            other = other or own
            yield f"static_assert(offsetof({ours}, {own}) == offsetof({theirs}, {other}));"
            yield f"static_assert(sizeof({ours}::{own}) == sizeof({theirs}::{other}));"
        yield f"static_assert(sizeof({ours}) == sizeof({theirs}));"
    yield "static_assert(normx::dlpack::version.major == DLPACK_MAJOR_VERSION);"
    for ours, theirs in {"cpu": "kDLCPU", "floating": "kDLFloat", "bfloat": "kDLBfloat"}.items():
        yield f"static_assert(normx::dlpack::{ours} == static_cast<int>({theirs}));"


def test_declarations_are_those_of_torch(tmp_path):
    torch = pytest.importorskip("torch", reason="needs the headers of torch")
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None or not NATIVE.is_dir():
        pytest.skip("needs a C++ compiler and the sources")
    headers = Path(torch.__file__).parent / "include"
    text = (headers / "ATen" / "dlpack.h").read_text("utf-8")
    if "DLPackExchangeAPI" not in text:
        pytest.skip("needs a torch with DLPack 1.3")
    source = tmp_path / "check.cpp"
    include = '#include <cstddef>\n#include "ATen/dlpack.h"\n#include "bind/dlpack.hpp"\n'
    source.write_text(include + "\n".join(checks()) + "\n", "utf-8")
    command = [compiler, "-std=c++20", "-fsyntax-only", f"-I{headers}", f"-I{NATIVE}", str(source)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_every_declaration_is_checked():
    if not NATIVE.is_dir():
        pytest.skip("needs the sources")
    header = (NATIVE / "bind" / "dlpack.hpp").read_text("utf-8")
    declared = set(re.findall(r"^struct (\w+) \{", header, re.MULTILINE))
    assert declared == {ours for ours, _ in STRUCTS}
