// Products of pixels and weights on tensor cores, in tiles as the table wants them.
#pragma once

#include "network_stage.cuh"

namespace mbv3fast {

// Rows of pixels, and of a weight what they are multiplied with: a row for each of `outputs`, which are a multiple of 8,
// both of `depth` numbers.
template <class T>
struct Factors {
  SharedPtr<const T> from;
  int pitch, pixels;
  SharedPtr<const T> weight;
  int weight_pitch, outputs, depth;
  SharedPtr<const float> bias = {};  // [outputs], if there is one
  Activation activation = Activation::none;
};

// use(pixel, output, two sums) for each pixel and each even output, of Rows by Columns tiles at once; sums begin with a
// bias where there is one, and are activated.
template <int Rows, int Columns, class T, class Use>
__device__ __forceinline__ void products(const Factors<T>& f, Use use) {
  constexpr int kRows = 16 * Rows, kColumns = 16 * Columns;
  const int columns = ceil_div(f.outputs, kColumns), lane = lane_index();
  const Quotient by_columns(columns);
#pragma unroll 1
  for (int tile = thread_index() / 32; tile < ceil_div(f.pixels, kRows) * columns; tile += kNetworkWarps) {
    const int m = by_columns.of(tile) * kRows, n = by_columns.rest(tile) * kColumns;
    float sums[Rows][Columns][2][4] = {};
#pragma unroll
    for (int j = 0; f.bias && j < 2 * Columns; ++j) {
      const float2 bias = load<float2>(f.bias + least(n + 8 * j, f.outputs - 8) + lane % 4 * 2);
#pragma unroll
      for (int i = 0; i < 2 * Rows; ++i) {
        float* sum = &sums[i / 2][j / 2][j % 2][i % 2 * 2];
        sum[0] = bias.x, sum[1] = bias.y;
      }
    }
    multiply<T>(sums, f.from + m * f.pitch, f.pitch, f.weight + n * f.weight_pitch, f.weight_pitch, f.depth, AsItIs{},
                f.pixels - m, f.outputs - n);
    activate_all(f.activation, reinterpret_cast<float(&)[8 * Rows * Columns]>(sums));
#pragma unroll
    for (int i = 0; i < 2 * Rows; ++i) {
      const int pixel = m + 8 * i + lane / 4;
      if (pixel >= f.pixels) break;
#pragma unroll
      for (int j = 0; j < 2 * Columns; ++j) {
        const float* sum = &sums[i / 2][j / 2][j % 2][i % 2 * 2];
        if (n + 8 * j < f.outputs) use(pixel, n + 8 * j + lane % 4 * 2, float2{sum[0], sum[1]});
      }
    }
  }
}

template <class T, class Use>
__device__ __forceinline__ void products(Tiling tiles, const Factors<T>& f, Use use) {
  switch (tiles) {
    case Tiling::one: return products<1, 1>(f, use);
    case Tiling::beside: return products<1, 2>(f, use);
    case Tiling::below: return products<2, 1>(f, use);
    case Tiling::four: return products<2, 2>(f, use);
  }
}

}  // namespace mbv3fast
