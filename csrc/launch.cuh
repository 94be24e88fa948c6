// From a C function's arguments to a launch: what it refuses, and the one place that launches.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "device.cuh"
#include "mbv3fast.h"

namespace mbv3fast {

// Why the calling thread's last call that failed did so, and the code that it returned.
struct Said {
  int code = 0;
  std::string words;
};
Said& last_said();

inline int say(int code, std::string words) {
  last_said() = {code, std::move(words)};
  return code;
}

// Arguments that no kernel takes. `what` names the argument, what it is, and what is needed.
struct Refused {
  std::string what;
};

// What kernels run on: 90 is compute capability 9.0; bytes of shared memory that a block may have.
struct Device {
  int capability;
  std::int64_t shared_limit;
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
  need(blocks >= 0 && blocks < (std::int64_t{1} << 31), "blocks", blocks, "fewer than 2^31: split the batch");
}

// Bounds that keep all that is computed of sizes within its type: offsets within an image in 32 bits, others in 64.
inline void need_channels(const std::string& name, std::int64_t got) {
  need(got > 0 && got % 8 == 0, name, got, "a multiple of 8");
  need(got <= 1 << 20, name, got, "no more than 2^20");
}

inline void need_area(const std::string& name, std::int64_t height, std::int64_t width) {
  need(height > 0 && width > 0, name, height < width ? height : width, "1 or more each");
  need(height < (1 << 20) && width < (1 << 20) && height * width < (1 << 30), name, height * width, "fewer than 2^30");
}

inline void need_images(std::int64_t images, std::int64_t most_of_image) {
  need(images >= 0, "images", images, "0 or more");
  need(images <= (std::int64_t{1} << 60) / most_of_image, "images", images, "fewer: a tensor has up to 2^60 elements");
}

// `name`: of the size that asks for it.
inline void need_shared(const std::string& name, std::int64_t got, std::int64_t bytes, const Device& device) {
  need(bytes <= device.shared_limit, name, got,
       "fewer: a block has " + std::to_string(device.shared_limit) + " bytes of shared memory");
}

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

// The clusters of such a launch that run at once: as many here as show what several do.
template <auto Kernel>
int most_clusters(const Launch&) {
  return 2;
}

template <auto Kernel, class Params>
int launch(const char* name, const Launch& how, const Params& params) {
  emulation::Config config;
  config.grid.x = static_cast<unsigned>(how.blocks);
  config.block.x = static_cast<unsigned>(how.threads);
  config.shared_bytes = static_cast<std::size_t>(how.shared_bytes);
  config.cluster = static_cast<unsigned>(how.cluster);
  config.overlapped = how.overlapped && current_device().capability >= 90;
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

// Lets a kernel have what a launch asks for beyond what all chips have.
template <auto Kernel>
cudaError_t allow(const Launch& how, const Device& device) {
  if (how.shared_bytes > 48 * 1024) {  // all that there is: what this launch needs, another thread might lower
    const auto most = cudaFuncAttributeMaxDynamicSharedMemorySize;
    const cudaError_t error = cudaFuncSetAttribute(Kernel, most, static_cast<int>(device.shared_limit));
    if (error != cudaSuccess) return error;
  }
  if (how.cluster <= 8) return cudaSuccess;
  return cudaFuncSetAttribute(Kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
}

inline cudaLaunchAttribute cluster_of(int blocks) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(blocks);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  return attribute;
}

// The clusters of such a launch that run at once; 0 where none can.
template <auto Kernel>
int most_clusters(const Launch& how) {
  int count = 0;
  cudaLaunchAttribute attribute = cluster_of(how.cluster);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(how.blocks));
  config.blockDim = dim3(static_cast<unsigned>(how.threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(how.shared_bytes);
  config.attrs = &attribute, config.numAttrs = 1;
  cudaError_t error = allow<Kernel>(how, current_device());
  if (error == cudaSuccess) error = cudaOccupancyMaxActiveClusters(&count, Kernel, &config);
  if (error == cudaSuccess) return count;
  cudaGetLastError();  // or whoever asks next takes it for their own
  return 0;
}

template <auto Kernel, class Params>
cudaError_t try_launch(const Launch& how, const Params& params) {
  const Device device = current_device();
  const cudaError_t error = allow<Kernel>(how, device);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(how.blocks));
  config.blockDim = dim3(static_cast<unsigned>(how.threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(how.shared_bytes);
  config.stream = static_cast<cudaStream_t>(how.stream);
  config.attrs = attributes;
  if (how.overlapped && device.capability >= 90) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  if (how.cluster > 1) attributes[config.numAttrs++] = cluster_of(how.cluster);
  return cudaLaunchKernelEx(&config, Kernel, params);
}

template <auto Kernel, class Params>
int launch(const char* name, const Launch& how, const Params& params) {
  const cudaError_t error = try_launch<Kernel>(how, params);
  if (error == cudaSuccess) return 0;
  cudaGetLastError();  // or whoever asks next takes it for their own
  return say(error, std::string(name) + ": " + cudaGetErrorString(error) + " (" + std::to_string(how.blocks) +
                        " blocks of " + std::to_string(how.threads) + " threads in clusters of " +
                        std::to_string(how.cluster) + ", " + std::to_string(how.shared_bytes) + " bytes of shared memory)");
}

#endif

// Runs a C function's body: no exception leaves it.
template <class Body>
int guarded(const char* name, Body body) {
  try {
    return body();
  } catch (const Refused& refused) {
    return say(MBV3FAST_REFUSED, std::string(name) + ": " + refused.what);
  } catch (const std::exception& error) {
    return say(MBV3FAST_FAULT, error.what());
  }
}

}  // namespace mbv3fast
