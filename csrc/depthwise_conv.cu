// Depthwise convolution + bias + activation, and the sums of its output over tiles.
//
// A thread computes kColumns neighbouring pixels of a row, 8 channels each, in float32. It reads every input pixel that
// they need once, 16 bytes at a time, and unrolls a row of taps, so that its loads are in flight together; rows that
// neighbours read too come from the L1 cache. Threads of a block lie along channels first, so that a warp's accesses are
// whole lines; a block's sums for `pool` are added in a fixed order.
#include "launch.cuh"

namespace mbv3fast {
namespace {

constexpr int kColumns = 4;
constexpr int kMostThreads = 512;

template <class T>
struct DepthwiseConv {
  GlobalPtr<const T> x, weight;
  GlobalPtr<const float> bias;
  GlobalPtr<T> out;
  GlobalPtr<float> pool;
  int height, width, out_height, out_width, channels, top, left;
  int tile_height, tile_width, groups, tiles_x, tiles_y, blocks_of_channels;
};

template <class T, int K, int Stride, Activation A>
__global__ void __launch_bounds__(kMostThreads) depthwise_conv_kernel(const __grid_constant__ DepthwiseConv<T> p) {
  const int thread = static_cast<int>(threadIdx.x), block = static_cast<int>(blockIdx.x);
  const int strips = p.tile_width / kColumns;
  const int group = thread % p.groups, strip = thread / p.groups % strips, line = thread / p.groups / strips;
  const int block_of_channels = block % p.blocks_of_channels, tile = block / p.blocks_of_channels % (p.tiles_x * p.tiles_y);
  const std::int64_t image = block / p.blocks_of_channels / (p.tiles_x * p.tiles_y);
  const int channel = (block_of_channels * p.groups + group) * 8;
  const int row = tile / p.tiles_x * p.tile_height + line;
  const int column = tile % p.tiles_x * p.tile_width + strip * kColumns;
  const bool works = channel < p.channels && row < p.out_height && column < p.out_width;

  start_successor();
  float sums[kColumns][8] = {};
  if (works) {
    float bias[8];
    load_floats(bias, p.bias + channel);
#pragma unroll
    for (int o = 0; o < kColumns; ++o) {
#pragma unroll
      for (int c = 0; c < 8; ++c) sums[o][c] = bias[c];
    }
  }
  wait_for_predecessor();
  if (works) {
#pragma unroll 1
    for (int ky = 0; ky < K; ++ky) {
      const int y = row * Stride - p.top + ky;
      if (y < 0 || y >= p.height) continue;
      float taps[K][8];
#pragma unroll
      for (int kx = 0; kx < K; ++kx) {
        load<Eight<T>>(p.weight + ((ky * K + kx) * p.channels + channel)).unpack(taps[kx]);
      }
      const std::int64_t line_start = (image * p.height + y) * p.width;
#pragma unroll
      for (int i = 0; i < (kColumns - 1) * Stride + K; ++i) {
        const int x = column * Stride - p.left + i;
        if (x < 0 || x >= p.width) continue;
        float values[8];
        load<Eight<T>>(p.x + ((line_start + x) * p.channels + channel)).unpack(values);
#pragma unroll
        for (int o = 0; o < kColumns; ++o) {
          const int kx = i - o * Stride;
          if (kx < 0 || kx >= K) continue;
#pragma unroll
          for (int c = 0; c < 8; ++c) sums[o][c] = fmaf(values[c], taps[kx][c], sums[o][c]);
        }
      }
    }
  }
  float total[8] = {};
  if (works) {
#pragma unroll
    for (int o = 0; o < kColumns; ++o) {
      if (column + o >= p.out_width) continue;
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        sums[o][c] = activate<A>(sums[o][c]);
        total[c] += sums[o][c];
      }
      const std::int64_t pixel = (image * p.out_height + row) * p.out_width + column + o;
      store(p.out + (pixel * p.channels + channel), Eight<T>::packed(sums[o]));
    }
  }
  if (!p.pool) return;
  const SharedPtr<float> totals = view<float>(shared_memory());  // [strips of the tile, 8 * groups]
  const int width = 8 * p.groups, rows = strips * p.tile_height;
  const SharedPtr<float> mine = totals + ((line * strips + strip) * width + group * 8);
  store(mine, float4{total[0], total[1], total[2], total[3]});
  store(mine + 4, float4{total[4], total[5], total[6], total[7]});
  __syncthreads();
  for (int c = thread; c < width; c += p.groups * rows) {
    const int pooled = block_of_channels * width + c;
    if (pooled >= p.channels) continue;
    float sum = 0.0f;
    for (int r = 0; r < rows; ++r) sum += load<float>(totals + (r * width + c));
    const std::int64_t place = image * p.tiles_x * p.tiles_y + tile;
    store(p.pool + (place * p.channels + pooled), sum);
  }
}

void check(const mbv3fast_depthwise_conv_args& a) {
  need_pointer(a.x, "x");
  need_pointer(a.weight, "weight");
  need_pointer(a.bias, "bias");
  need_pointer(a.out, "out");
  if (a.pool != nullptr) need_pointer(a.pool, "pool");
  need_channels("channels", a.channels);
  need(a.kernel == 3 || a.kernel == 5, "kernel", a.kernel, "3 or 5");
  need(a.stride == 1 || a.stride == 2, "stride", a.stride, "1 or 2");
  need_area("height, width", a.height, a.width);
  need_area("out_height, out_width", a.out_height, a.out_width);
  const std::int64_t in = std::int64_t{a.height} * a.width, out = std::int64_t{a.out_height} * a.out_width;
  need_images(a.images, (in > out ? in : out) * a.channels);
  need(a.top >= 0 && a.top < a.kernel, "top", a.top, "less than the kernel");
  need(a.left >= 0 && a.left < a.kernel, "left", a.left, "less than the kernel");
  need_dtype(a.dtype);
  need_activation(a.activation);
  const auto few = [](int value) { return value > 0 && value <= kMostThreads; };
  need(few(a.tile_height), "tile_height", a.tile_height, "1 to 512");
  need(few(a.tile_width / kColumns) && a.tile_width % kColumns == 0, "tile_width", a.tile_width, "a multiple of 4");
  need(few(a.groups), "groups", a.groups, "1 to 512");
  const std::int64_t threads = std::int64_t{a.tile_height} * (a.tile_width / kColumns) * a.groups;
  need(threads % 32 == 0 && threads <= kMostThreads, "tile_height * tile_width / 4 * groups", threads,
       "a multiple of 32, at most 512: threads");
}

template <class T, int K, int Stride, Activation A>
int run(const mbv3fast_depthwise_conv_args& a, void* stream) {
  DepthwiseConv<T> p;
  const std::int64_t pixels = a.images * a.height * a.width, out_pixels = a.images * a.out_height * a.out_width;
  p.tile_height = a.tile_height, p.tile_width = a.tile_width, p.groups = a.groups;
  p.tiles_x = ceil_div(a.out_width, a.tile_width), p.tiles_y = ceil_div(a.out_height, a.tile_height);
  p.blocks_of_channels = ceil_div(a.channels, 8 * a.groups);
  p.x = activations(static_cast<const T*>(a.x), pixels * a.channels);
  p.weight = weights(static_cast<const T*>(a.weight), std::int64_t{K} * K * a.channels);
  p.bias = weights(a.bias, a.channels);
  p.out = activations(static_cast<T*>(a.out), out_pixels * a.channels);
  const std::int64_t tiles = std::int64_t{p.tiles_x} * p.tiles_y;
  p.pool = a.pool == nullptr ? GlobalPtr<float>() : activations(a.pool, a.images * tiles * a.channels);
  p.height = a.height, p.width = a.width, p.out_height = a.out_height, p.out_width = a.out_width;
  p.channels = a.channels, p.top = a.top, p.left = a.left;
  Launch how;
  how.blocks = a.images * tiles * p.blocks_of_channels;
  if (how.blocks == 0) return 0;
  need_blocks(how.blocks);
  how.threads = a.tile_height * (a.tile_width / kColumns) * a.groups;
  how.shared_bytes = a.pool == nullptr ? 0 : std::int64_t{how.threads} * 8 * sizeof(float);
  how.overlapped = a.overlapped != 0;
  how.stream = stream;
  return launch<depthwise_conv_kernel<T, K, Stride, A>>("depthwise_conv", how, p);
}

template <class T, int K, int Stride>
int by_activation(const mbv3fast_depthwise_conv_args& a, void* stream) {
  switch (static_cast<Activation>(a.activation)) {
    case Activation::relu: return run<T, K, Stride, Activation::relu>(a, stream);
    case Activation::hardswish: return run<T, K, Stride, Activation::hardswish>(a, stream);
    default: return run<T, K, Stride, Activation::none>(a, stream);
  }
}

template <class T>
int by_geometry(const mbv3fast_depthwise_conv_args& a, void* stream) {
  if (a.kernel == 3) return a.stride == 1 ? by_activation<T, 3, 1>(a, stream) : by_activation<T, 3, 2>(a, stream);
  return a.stride == 1 ? by_activation<T, 5, 1>(a, stream) : by_activation<T, 5, 2>(a, stream);
}

}  // namespace
}  // namespace mbv3fast

int mbv3fast_depthwise_conv(const mbv3fast_depthwise_conv_args* args, void* stream) {
  using namespace mbv3fast;
  return guarded("depthwise_conv", [&] {
    if (args == nullptr) throw Refused{"args: got null"};
    check(*args);
    return args->dtype == MBV3FAST_FLOAT16 ? by_geometry<float16>(*args, stream) : by_geometry<bfloat16>(*args, stream);
  });
}
