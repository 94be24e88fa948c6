// From a C function's arguments to a launch: what it refuses, and the one place that launches.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "device.cuh"
#include "mbv3fast.h"

namespace mbv3fast {

// What the calling thread's last call said.
std::string& last_words();

// Arguments that no kernel takes. `what` names the argument, what it is, and what is needed.
struct Refused {
  std::string what;
};

inline void need(bool right, const std::string& name, std::int64_t got, const std::string& needed) {
  if (!right) throw Refused{name + ": got " + std::to_string(got) + ", needs " + needed};
}

inline void need_pointer(const void* pointer, const std::string& name) {
  if (pointer == nullptr) throw Refused{name + ": got null, needs a tensor"};
  if (reinterpret_cast<std::uintptr_t>(pointer) % 16 != 0) throw Refused{name + ": needs to be aligned to 16 bytes"};
}

inline void need_dtype(int dtype) {
  need(dtype == MBV3FAST_FLOAT16 || dtype == MBV3FAST_BFLOAT16, "dtype", dtype, "float16 or bfloat16");
}

inline void need_activation(int activation) {
  need(activation >= 0 && activation <= 2, "activation", activation, "none, relu or hardswish");
}

inline void need_blocks(std::int64_t blocks) {
  need(blocks < (std::int64_t{1} << 31), "blocks", blocks, "fewer than 2^31: split the batch");
}

// What kernels run on: 90 is compute capability 9.0; bytes of shared memory that a block may have.
struct Device {
  int capability;
  std::int64_t shared_limit;
};

struct Launch {
  std::int64_t blocks;
  int threads;
  std::int64_t shared_bytes = 0;
  int cluster = 1;
  bool overlapped = false;
  void* stream = nullptr;
};

#ifdef MBV3FAST_EMULATED

inline Device current_device() {
  return {emulation::chip().capability, static_cast<std::int64_t>(emulation::chip().shared_limit())};
}

template <auto Kernel, class Params>
int launch(const char* name, const Launch& how, const Params& params) {
  emulation::Config config;
  config.grid.x = static_cast<unsigned>(how.blocks);
  config.block.x = static_cast<unsigned>(how.threads);
  config.shared_bytes = static_cast<std::size_t>(how.shared_bytes);
  config.cluster = static_cast<unsigned>(how.cluster);
  config.overlapped = how.overlapped;
  emulation::run(name, config, [&] { Kernel(params); });
  return 0;
}

#else

inline Device current_device() {
  const auto must = [](cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
  };
  int device, major, minor, limit;
  must(cudaGetDevice(&device));
  must(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  must(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  must(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return {10 * major + minor, limit};
}

template <auto Kernel, class Params>
int launch(const char*, const Launch& how, const Params& params) {
  if (how.shared_bytes > 48 * 1024) {
    const auto most = cudaFuncAttributeMaxDynamicSharedMemorySize;
    const cudaError_t error = cudaFuncSetAttribute(Kernel, most, static_cast<int>(how.shared_bytes));
    if (error != cudaSuccess) return error;
  }
  if (how.cluster > 8) {
    const cudaError_t error = cudaFuncSetAttribute(Kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(how.blocks));
  config.blockDim = dim3(static_cast<unsigned>(how.threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(how.shared_bytes);
  config.stream = static_cast<cudaStream_t>(how.stream);
  config.attrs = attributes;
  if (how.overlapped) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  if (how.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(how.cluster);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  }
  return cudaLaunchKernelEx(&config, Kernel, params);
}

#endif

// Runs a C function's body: no exception leaves it.
template <class Body>
int guarded(const char* name, Body body) {
  try {
    return body();
  } catch (const Refused& refused) {
    last_words() = std::string(name) + ": " + refused.what;
    return MBV3FAST_REFUSED;
  } catch (const std::exception& error) {
    last_words() = error.what();
    return MBV3FAST_FAULT;
  }
}

}  // namespace mbv3fast
