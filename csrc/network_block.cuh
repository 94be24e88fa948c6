// The parts of an inverted residual, of rows of its output: expand and project on tensor cores, windows on CUDA cores.
// The expanded activation is a tile of `step` channels with a border of zeros, which never leaves the block.
#pragma once

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
    top = first < 0 ? 0 : first;
    bottom = first + count < s.in.height ? first + count : s.in.height;
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

// Zeros for rows `from` to `to` of the tile.
template <class T>
__device__ __forceinline__ void clear_rows(const Stage& s, int from, int to) {
  const int row = s.expanded_width * s.expanded_pitch;
  for (int i = from * row + 8 * thread_index(); i < to * row; i += 8 * kNetworkThreads) {
    store(expanded_tile<T>(s) + i, uint4{0, 0, 0, 0});
  }
}

// A band's pixels inside the image into the tile: expanded, or as they are.
template <class T>
__device__ __forceinline__ void expand(const Stage& s, const Band& band, const Local<T>& in, const StepWeights<T>& weights,
                                       int channel) {
  const int pixels = (band.bottom - band.top) * s.in.width, lane = lane_index();
  const SharedPtr<const T> from = in.row(band.top);
  const SharedPtr<T> to = expanded_tile<T>(s) +
                          ((band.top - band.first) * s.expanded_width + s.left) * s.expanded_pitch;
  if (!s.expands) {
    const int eights = s.step / 8;
    for (int i = thread_index(); i < pixels * eights; i += kNetworkThreads) {
      const int pixel = i / eights, c = i % eights * 8, y = pixel / s.in.width, x = pixel % s.in.width;
      const bool wanted = channel + c < s.in.channels;
      const uint4 zeros = {0, 0, 0, 0};
      store(to + ((y * s.expanded_width + x) * s.expanded_pitch + c),
            wanted ? load<uint4>(from + (pixel * in.pitch + channel + c)) : zeros);
    }
    return;
  }
  const int columns = s.step / 16, pitch = pitch_of(s.in.channels);
  const Activation activation = static_cast<Activation>(s.expand_activation);
  for (int tile = thread_index() / 32; tile < ceil_div(pixels, 16) * columns; tile += kNetworkWarps) {
    const int m = tile / columns * 16, n = tile % columns * 16;
    float sums[1][1][2][4] = {};
    multiply<T>(sums, from + m * in.pitch, in.pitch, weights.expand + n * pitch, pitch, s.in.channels, AsItIs{},
                pixels - 1 - m);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int pixel = m + 8 * i + lane / 4;
      if (pixel >= pixels) continue;
      const int y = pixel / s.in.width, x = pixel % s.in.width;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int c = n + 8 * half + lane % 4 * 2;
        const float2 bias = load<float2>(weights.expand_bias + c);
        const float* sum = &sums[0][0][half][2 * i];
        store(to + ((y * s.expanded_width + x) * s.expanded_pitch + c),
              pack<T>(activate(activation, sum[0] + bias.x), activate(activation, sum[1] + bias.y)));
      }
    }
  }
}

// The windows of a band and of a step's channels: a thread has a pair of channels and seven pixels of a row.
template <class T, int Kernel, int Stride>
__device__ __forceinline__ void depthwise(const Stage& s, const Band& band, const StepWeights<T>& weights, SharedPtr<T> to) {
  constexpr int kStrip = 7, kColumns = (kStrip - 1) * Stride + Kernel;
  const int pairs = s.step / 2, strips = ceil_div(s.out.width, kStrip);
  const Activation activation = static_cast<Activation>(s.activation);
  for (int i = thread_index(); i < (band.end - band.begin) * strips * pairs; i += kNetworkThreads) {
    const int channel = i % pairs * 2, x = i / pairs % strips * kStrip, y = i / pairs / strips;
    const float2 bias = load<float2>(weights.bias + channel);
    float2 sums[kStrip];
#pragma unroll
    for (int o = 0; o < kStrip; ++o) sums[o] = bias;
#pragma unroll
    for (int ky = 0; ky < Kernel; ++ky) {
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
          sums[o].x = fmaf(values[o * Stride + kx].x, tap.x, sums[o].x);
          sums[o].y = fmaf(values[o * Stride + kx].y, tap.y, sums[o].y);
        }
      }
    }
#pragma unroll
    for (int o = 0; o < kStrip; ++o) {
      if (x + o >= s.out.width) break;
      store(to + ((y * s.out.width + x + o) * s.windowed_pitch + channel),
            pack<T>(activate(activation, sums[o].x), activate(activation, sums[o].y)));
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

// use(pixel, output, two sums) for each pixel and each even of `outputs` columns: pixels [.., depth] times weight^T.
template <class T, class Prepare, class Use>
__device__ __forceinline__ void project(SharedPtr<const T> from, int pitch, int pixels, SharedPtr<const T> weight,
                                        int weight_pitch, int outputs, int depth, Prepare prepare, Use use) {
  const int columns = ceil_div(outputs, 16), lane = lane_index();
  for (int tile = thread_index() / 32; tile < ceil_div(pixels, 16) * columns; tile += kNetworkWarps) {
    const int m = tile / columns * 16, n = tile % columns * 16;
    float sums[1][1][2][4] = {};
    multiply<T>(sums, from + m * pitch, pitch, weight + n * weight_pitch, weight_pitch, depth, prepare, pixels - 1 - m);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int pixel = m + 8 * i + lane / 4;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int output = n + 8 * half + lane % 4 * 2;
        if (pixel < pixels && output < outputs) use(pixel, output, float2{sums[0][0][half][2 * i], sums[0][0][half][2 * i + 1]});
      }
    }
  }
}

}  // namespace mbv3fast
