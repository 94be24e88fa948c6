// An inverted residual until it is projected: rows of pixels expanded on tensor cores, and windows on CUDA cores. What is
// expanded is a tile of `step` channels with a border of zeros, which never leaves the block.
#pragma once

#include "network_products.cuh"
#include "network_stream.cuh"

namespace mbv3fast {

// Rows `begin` to `end` of the output, and the rows of the input under their windows.
struct Band {
  int begin, end;    // of the output
  int first, count;  // rows of the tile, the first of which may lie above the image
  int top, bottom;   // of the input, those inside the image

  __device__ __forceinline__ Band(const Stage& s, int begin_, int end_) : begin(begin_), end(end_) {
    const bool some = end > begin;
    first = begin * s.stride - s.top;
    count = some ? (end - begin - 1) * s.stride + s.kernel : 0;
    top = most(first, 0);
    bottom = least(first + count, s.in.height);
    if (!some) bottom = top;
  }
};

// Where the weights of a step lie in their chunk.
template <class T>
struct StepWeights {
  SharedPtr<const T> expand, windows;
  SharedPtr<const float> expand_bias, bias;

  __device__ __forceinline__ StepWeights(const Stage& s, SharedPtr<std::uint8_t> chunk, int step = 0) {
    const int matrix = s.step * pitch_of(s.in.channels) * 2, taps = s.kernel * s.kernel * s.step * 2;
    const SharedPtr<std::uint8_t> at = chunk + step * size(s), behind = at + (s.expands ? matrix + s.step * 4 : 0);
    expand = view<const T>(at), expand_bias = view<const float>(at + matrix);
    windows = view<const T>(behind), bias = view<const float>(behind + taps);
  }
  static __device__ __forceinline__ int size(const Stage& s) {
    const int expanding = s.expands ? s.step * (pitch_of(s.in.channels) * 2 + 4) : 0;
    return expanding + s.step * (s.kernel * s.kernel * 2 + 4);
  }
};

template <class T>
__device__ __forceinline__ SharedPtr<T> expanded_tile(const Stage& s) {
  return view<T>(shared_memory() + s.expanded);
}

template <class T>
__device__ __forceinline__ SharedPtr<T> windowed_pixels(const Stage& s) {
  return view<T>(shared_memory() + s.windowed);
}

// Zeros beside the image, in so many rows of the tile.
template <class T>
__device__ __forceinline__ void clear_border(const Stage& s, int rows) {
  const int beside = s.expanded_width - s.in.width, eights = s.step / 8;
  const Quotient by_eights(eights), by_beside(most(beside, 1));
#pragma unroll 1
  for (int i = thread_index(); i < rows * beside * eights; i += kNetworkThreads) {
    const int pixel = by_eights.of(i), c = by_eights.rest(i) * 8, k = by_beside.rest(pixel);
    const int x = k < s.left ? k : k + s.in.width;
    store(expanded_tile<T>(s) + ((by_beside.of(pixel) * s.expanded_width + x) * s.expanded_pitch + c), uint4{0, 0, 0, 0});
  }
}

// Zeros above or below the image, in rows `from` to `to` of the tile.
template <class T>
__device__ __forceinline__ void clear_rows(const Stage& s, int from, int to) {
  const int eights = s.in.width * s.expanded_pitch / 8;
  const Quotient by_eights(eights);
#pragma unroll 1
  for (int i = thread_index(); i < (to - from) * eights; i += kNetworkThreads) {
    const int row = (from + by_eights.of(i)) * s.expanded_width + s.left;
    store(expanded_tile<T>(s) + (row * s.expanded_pitch + 8 * by_eights.rest(i)), uint4{0, 0, 0, 0});
  }
}

// A band's pixels inside the image into the tile: expanded, or as they are.
template <class T>
__device__ __forceinline__ void expand(const Stage& s, const Band& band, const Local<T>& in, const StepWeights<T>& weights,
                                       int channel) {
  const int pixels = (band.bottom - band.top) * s.in.width;
  const SharedPtr<const T> from = in.row(band.top);
  const SharedPtr<T> to = expanded_tile<T>(s) +
                          ((band.top - band.first) * s.expanded_width + s.left) * s.expanded_pitch;
  const Quotient row(s.in.width);
  const int beside = s.expanded_width - s.in.width;
  if (!s.expands) {
    const int eights = s.step / 8;
    const Quotient by_eights(eights);
#pragma unroll 1
    for (int i = thread_index(); i < pixels * eights; i += kNetworkThreads) {
      const int pixel = by_eights.of(i), c = by_eights.rest(i) * 8;
      const bool wanted = channel + c < s.in.channels;
      const uint4 zeros = {0, 0, 0, 0};
      store(to + ((pixel + row.of(pixel) * beside) * s.expanded_pitch + c),
            wanted ? load<uint4>(from + (pixel * in.pitch + channel + c)) : zeros);
    }
    return;
  }
  const int pitch = pitch_of(s.in.channels);
  const Factors<T> factors{from, in.pitch, pixels, weights.expand, pitch, s.step, s.in.channels, weights.expand_bias,
                           s.expand_activation};
  products(s.expand_tiles, factors, [&](int pixel, int c, float2 sum) {
    store(to + ((pixel + row.of(pixel) * beside) * s.expanded_pitch + c), pack<T>(sum.x, sum.y));
  });
}

// The windows of a band and of a step's channels: a thread has a pair of channels and seven pixels of a row.
template <class T, int Kernel, int Stride>
__device__ __forceinline__ void depthwise(const Stage& s, const Band& band, const StepWeights<T>& weights, SharedPtr<T> to) {
  constexpr int kStrip = 7, kColumns = (kStrip - 1) * Stride + Kernel;
  const int pairs = s.step / 2, strips = ceil_div(s.out.width, kStrip);
  const Quotient by_pairs(pairs), by_strips(strips);
#pragma unroll 1
  for (int i = thread_index(); i < (band.end - band.begin) * strips * pairs; i += kNetworkThreads) {
    const int strip = by_pairs.of(i), channel = by_pairs.rest(i) * 2;
    const int x = by_strips.rest(strip) * kStrip, y = by_strips.of(strip);
    const float2 bias = load<float2>(weights.bias + channel);
    float sums[2 * kStrip];
#pragma unroll
    for (int o = 0; o < kStrip; ++o) sums[2 * o] = bias.x, sums[2 * o + 1] = bias.y;
#pragma unroll 1
    for (int ky = 0; ky < Kernel; ++ky) {  // unrolled, the code of all windows would be too much to stay near
      const auto line = expanded_tile<T>(s) +
                        (((y * Stride + ky) * s.expanded_width + x * Stride) * s.expanded_pitch + channel);
      float2 values[kColumns];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) values[c] = unpack<T>(load<std::uint32_t>(line + c * s.expanded_pitch));
#pragma unroll
      for (int kx = 0; kx < Kernel; ++kx) {
        const float2 tap = unpack<T>(load<std::uint32_t>(weights.windows + ((ky * Kernel + kx) * s.step + channel)));
#pragma unroll
        for (int o = 0; o < kStrip; ++o) {
          sums[2 * o] = fmaf(values[o * Stride + kx].x, tap.x, sums[2 * o]);
          sums[2 * o + 1] = fmaf(values[o * Stride + kx].y, tap.y, sums[2 * o + 1]);
        }
      }
    }
    activate_all(s.activation, sums);
#pragma unroll
    for (int o = 0; o < kStrip; ++o) {
      if (x + o >= s.out.width) break;
      store(to + ((y * s.out.width + x + o) * s.windowed_pitch + channel), pack<T>(sums[2 * o], sums[2 * o + 1]));
    }
  }
}

template <class T>
__device__ __forceinline__ void depthwise(const Stage& s, const Band& band, const StepWeights<T>& weights, SharedPtr<T> to) {
  if (s.kernel == 3 && s.stride == 1) return depthwise<T, 3, 1>(s, band, weights, to);
  if (s.kernel == 3) return depthwise<T, 3, 2>(s, band, weights, to);
  if (s.stride == 1) return depthwise<T, 5, 1>(s, band, weights, to);
  depthwise<T, 5, 2>(s, band, weights, to);
}

}  // namespace mbv3fast
