// What normx uses of DLPack 1.3: the structs through which a library's arrays are read and made without a word of Python,
// declared here so that nobody needs a library's headers to build. tests/native/test_dlpack.py compiles them against torch's own.
//
// A type of arrays has a capsule, `__dlpack_c_exchange_api__`, with the table of functions. A minor version adds to its end; a
// major one may move everything but the header, through which older tables are found.
#pragma once

#include <cstdint>

namespace normx::dlpack {

struct Version {
  std::uint32_t major, minor;
};
constexpr Version version{1, 3};
constexpr std::int32_t cpu = 1;                   // of device types
constexpr std::uint8_t floating = 2, bfloat = 4;  // of codes

struct Device {
  std::int32_t type, id;
};

struct DataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t *shape, *strides;  // in elements
  std::uint64_t byte_offset;
};

struct ManagedTensor {
  Version version;
  void* context;
  void (*deleter)(ManagedTensor* self);
  std::uint64_t flags;
  Tensor tensor;
};

struct ExchangeHeader {
  Version version;
  const ExchangeHeader* older;
};

struct Exchange {
  ExchangeHeader header;
  int (*allocate)(Tensor* prototype, ManagedTensor** out, void* context, void (*set_error)(void*, const char*, const char*));
  int (*managed_from_object)(void* object, ManagedTensor** out);
  int (*to_object)(ManagedTensor* tensor, void** out);  // takes the tensor
  int (*from_object)(void* object, Tensor* out);        // a view for as long as nobody else runs; null where there is none
  int (*current_stream)(std::int32_t device_type, std::int32_t device_id, void** out);
};

constexpr const char* capsule_name = "dlpack_exchange_api";

}  // namespace normx::dlpack
