// The library without Python: one depthwise convolution, of ones by ones, so that an output is the taps within the image.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "mbv3fast.h"

#ifdef MBV3FAST_EMULATED  // device memory is the CPU's
static void* device_memory(std::size_t bytes) { return std::aligned_alloc(16, bytes); }
static void wait() {}
#else
#include <cuda_runtime.h>
static void* device_memory(std::size_t bytes) {
  void* pointer = nullptr;
  return cudaMallocManaged(&pointer, bytes) == cudaSuccess ? pointer : nullptr;  // which the CPU can fill and read
}
static void wait() { cudaDeviceSynchronize(); }
#endif

static const std::uint16_t kOne = 0x3C00, kFour = 0x4400, kNine = 0x4880;  // of float16

template <class T>
static T* filled(std::size_t count, T value) {
  T* const memory = static_cast<T*>(device_memory(count * sizeof(T)));
  if (memory == nullptr) std::fprintf(stderr, "no memory on a GPU\n"), std::exit(1);
  for (std::size_t i = 0; i < count; ++i) memory[i] = value;
  return memory;
}

int main() {
  const int size = 8, channels = 64;
  std::uint16_t* const out = filled(size * size * channels, std::uint16_t{0});
  mbv3fast_depthwise_conv_args args = {};
  args.x = filled(size * size * channels, kOne);
  args.weight = filled(3 * 3 * channels, kOne);
  args.bias = filled(channels, 0.0f);
  args.out = out;
  args.images = 1;
  args.height = args.width = args.out_height = args.out_width = size;
  args.channels = channels;
  args.kernel = 3;
  args.stride = 1;
  args.top = args.left = 1;
  args.dtype = MBV3FAST_FLOAT16;
  args.activation = MBV3FAST_RELU;
  args.tile_height = args.tile_width = size;
  args.groups = channels / 8;

  const int code = mbv3fast_depthwise_conv(&args, nullptr);
  if (code != 0) return std::fprintf(stderr, "%s\n", mbv3fast_error(code)), 1;
  wait();
  const std::uint16_t corner = out[0], inside = out[(size + 1) * channels];
  std::printf("corner %s, inside %s\n", corner == kFour ? "right" : "wrong", inside == kNine ? "right" : "wrong");
  return corner == kFour && inside == kNine ? 0 : 1;
}
