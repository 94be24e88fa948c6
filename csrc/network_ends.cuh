// The ends of the network: the stem, which reads the image, and the linear layers.
#pragma once

#include "network_windows.cuh"
#include "network_squeeze.cuh"

namespace mbv3fast {

constexpr int kStemChannels = 4;  // of a pixel in shared memory, so that three pixels' are what a row of a window has

// An image's rows from `first` on, `count` of them, with its border, into the tile; zeros outside of the image. It is of V,
// which `convert` makes numbers of.
template <class T, class V, class Convert>
__device__ __forceinline__ void load_image(const Network<T>& p, GlobalPtr<const V> x, const Stage& s, std::int64_t image,
                                           int first, int count, Convert convert) {
  constexpr int kAtOnce = 4;  // pixels of a thread whose loads are all on their way before the first is used
  const SharedPtr<T> tile = expanded_tile<T>(s);
  const Quotient row(s.expanded_width);
  const int pixels = count * s.expanded_width;
#pragma unroll 1
  for (int begin = thread_index(); begin < pixels; begin += kAtOnce * kNetworkThreads) {
    V found[kAtOnce][kStemChannels];
    bool inside[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = begin + k * kNetworkThreads, y = first + row.of(i), x_ = row.rest(i) - s.left;
      inside[k] = i < pixels && y >= 0 && y < s.in.height && x_ >= 0 && x_ < s.in.width;
      const std::int64_t at = image * p.along[0] + y * p.along[2] + x_ * p.along[3];
#pragma unroll
      for (int c = 0; c < kStemChannels; ++c) {
        found[k][c] = inside[k] && c < s.in.channels ? load<V>(x + (at + c * p.along[1])) : V{};
      }
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = begin + k * kNetworkThreads;
      float values[kStemChannels];
#pragma unroll
      for (int c = 0; c < kStemChannels; ++c) {
        values[c] = inside[k] && c < s.in.channels ? convert(found[k][c], c) : 0.0f;
      }
      const uint2 pixel = {pack<T>(values[0], values[1]), pack<T>(values[2], values[3])};
      if (i < pixels) store(tile + i * kStemChannels, pixel);
    }
  }
}

template <class T>
__device__ __forceinline__ void load_image(const Network<T>& p, const Stage& s, std::int64_t image, int first, int count) {
  if (p.bytes) {
    load_image<T>(p, p.bytes, s, image, first, count, [&](std::uint8_t byte, int c) {
      return static_cast<float>(byte) * load<float>(p.factor + c) - load<float>(p.shift + c);
    });
  } else {
    load_image<T>(p, p.x, s, image, first, count, [](T value, int) { return to_float(value); });
  }
}

// The stem's rows of this block, and those above and below that its windows will reach, which are computed twice.
template <class T>
__device__ __forceinline__ void run_stem(const Network<T>& p, const Stage& s, Stream<T>& stream, const Place& place,
                                      std::int64_t image) {
  const int own = least(place.rank * s.rows, s.out.height), past = least(own + s.rows + s.out.below, s.out.height);
  const int begin = own > s.out.above ? own - s.out.above : 0, end = own < s.out.height ? past : begin;
  const Local<T> out(s.out, place.rank);
  const int lane = lane_index(), width = s.out.width, tiles = ceil_div(width, 16), columns = ceil_div(s.out.channels, 16);
  const int row = s.expanded_width * kStemChannels;
  load_image(p, s, image, begin * s.stride - s.top, end > begin ? (end - begin - 1) * s.stride + s.kernel : 0);
  const SharedPtr<std::uint8_t> chunk = stream.next();
  constexpr int kPitch = pitch_of(48);  // three rows of 16
  const auto weight = view<const T>(chunk);
  const auto bias = view<const float>(chunk + columns * 16 * kPitch * 2);
  const Quotient by_columns(columns), by_tiles(tiles);
#pragma unroll 1
  for (int tile = thread_index() / 32; tile < (end - begin) * tiles * columns; tile += kNetworkWarps) {
    const int strip = by_columns.of(tile), n = by_columns.rest(tile) * 16;
    const int x = by_tiles.rest(strip) * 16, y = by_tiles.of(strip);
    float sums[1][1][2][4] = {};
#pragma unroll 1
    for (int ky = 0; ky < 3; ++ky) {
      const auto from = expanded_tile<T>(s) + ((y * s.stride + ky) * row + x * s.stride * kStemChannels);
      multiply<T>(sums, from, s.stride * kStemChannels, weight + (n * kPitch + 16 * ky), kPitch, 16, AsItIs{}, width - x);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int pixel = x + 8 * i + lane / 4;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int c = n + 8 * half + lane % 4 * 2;
        if (pixel >= width || c >= s.out.channels) continue;
        const float2 offset = load<float2>(bias + c);
        const float* sum = &sums[0][0][half][2 * i];
        const float low = activate(s.activation, sum[0] + offset.x), high = activate(s.activation, sum[1] + offset.y);
        store(out.row(begin + y) + (pixel * out.pitch + c), pack<T>(low, high));
      }
    }
  }
  sync_cluster();  // in the next stage others write where the image lies
}

// This block's rows of a linear layer of the vector at `means`: to all blocks, at `hidden`, or, of the last, to memory.
template <class T>
__device__ __forceinline__ void run_linear(const Network<T>& p, const Stage& s, Stream<T>& stream, const Place& place,
                                        std::int64_t image, bool last) {
  const auto vector = shared_at<float>(s.squeeze.means), hidden = shared_at<float>(s.squeeze.hidden);
#pragma unroll 1
  for (int chunk = 0; chunk < s.chunks; ++chunk) {
    const int first = place.rank * s.channels + chunk * s.step;
    multiply_chunk<T, 32>(stream.next(), s.step, s.inputs, vector, [&](Total total) {
      const int output = first + total.row;
      if (output >= s.outputs || chunk * s.step + total.row >= s.channels) return;
      total.value = activate(s.activation, total.value);
      if (!last) return tell_all(hidden + output, total, place);
      if (total.copy == 0) store(p.out + (image * s.outputs + output), round_to<T>(total.value));
    });
  }
  sync_cluster();
}

}  // namespace mbv3fast
