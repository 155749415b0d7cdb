// What normx uses of XLA's foreign function interface (FFI, API version 0): its C structs, declared here so that nobody needs
// jaxlib to build. tests/libraries/test_jax_ffi.py compiles them against jaxlib's own xla/ffi/api/c_api.h.
//
// Every struct begins with its size, which grows when fields are added at its end (a minor version); whoever reads a struct
// checks that it is at least as large as the fields it knows. A major version, which may move fields, is refused by XLA itself:
// at registration it asks the handler for its version with the metadata extension.
#pragma once

#include <cstddef>
#include <cstdint>

namespace normx::xla {

enum class ExtensionType : int { metadata = 1 };
struct Extension {
  std::size_t struct_size;
  ExtensionType type;
  Extension* next;
};

struct Version {
  std::size_t struct_size;
  Extension* extensions;
  int major, minor;
};

struct TypeId {
  std::int64_t id;
};

struct Metadata {
  std::size_t struct_size;
  Version version;
  std::uint32_t traits;
  TypeId state_type;  // not in every 0.x: struct_size says whether it is there
};
struct MetadataExtension {
  Extension base;
  Metadata* metadata;
};

// The values of xla::PrimitiveType that normx knows.
enum class DataType : int { boolean = 1, s64 = 5, f16 = 10, f32 = 11, f64 = 12, bf16 = 16 };

struct Buffer {
  std::size_t struct_size;
  Extension* extensions;
  DataType dtype;
  void* data;
  std::int64_t rank;
  std::int64_t* dims;
};

// Arguments and results are buffers (1) or something that normx does not take.
struct Buffers {
  std::size_t struct_size;
  Extension* extensions;
  std::int64_t size;
  int* types;
  void** values;
};
constexpr int is_buffer = 1;

struct Bytes {
  const char* data;
  std::size_t size;
};
struct Scalar {
  DataType dtype;
  void* value;
};
struct Array {
  DataType dtype;
  std::size_t size;
  void* data;
};
enum class AttributeType : int { array = 1, scalar = 3, string = 4 };
struct Attributes {
  std::size_t struct_size;
  Extension* extensions;
  std::int64_t size;
  AttributeType* types;
  Bytes** names;
  void** values;  // Array, Scalar or Bytes
};

struct Error;
enum class ErrorCode : int { invalid_argument = 3, internal = 13 };
struct ErrorArgs {
  std::size_t struct_size;
  Extension* extensions;
  const char* message;
  ErrorCode code;
};

struct Api {
  std::size_t struct_size;
  Extension* extensions;
  Version version;
  const void* internal;
  Error* (*create_error)(ErrorArgs*);
  // and what normx does not call
};

enum class Stage : int { instantiate, prepare, initialize, execute };
struct CallFrame {
  std::size_t struct_size;
  Extension* extensions;
  const Api* api;
  void* context;
  Stage stage;
  Buffers arguments, results;
  Attributes attributes;
  // and what normx does not read
};

}  // namespace normx::xla
