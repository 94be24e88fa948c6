// Products on tensor cores, of matrices in shared memory whose rows hold what is summed over.
#pragma once

#include "device.cuh"

namespace mbv3fast {

__device__ __forceinline__ int thread_index() { return static_cast<int>(threadIdx.x); }
__device__ __forceinline__ int lane_index() { return thread_index() % 32; }

// The pitch of such rows, in elements: an odd number of 16-byte chunks, so that the eight rows that ldmatrix reads at once
// lie in different banks.
__host__ __device__ constexpr int pitch_of(int columns) { return (ceil_div(columns, 8) | 1) * 8; }

// What may be done to a fragment of A, of the columns from `k` on, before it is multiplied.
struct AsItIs {
  template <int N>
  __device__ __forceinline__ void operator()(std::uint32_t (&)[N], int) const {}
};

// Times a number for each column.
template <class T>
struct Scaled {
  SharedPtr<const float> scale;

  template <int N>
  __device__ __forceinline__ void operator()(std::uint32_t (&fragment)[N], int k) const {
#pragma unroll
    for (int half = 0; half < N / 2; ++half) {
      const float2 factor = load<float2>(scale + (k + 8 * half + lane_index() % 4 * 2));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float2 value = unpack<T>(fragment[2 * half + i]);
        fragment[2 * half + i] = pack<T>(value.x * factor.x, value.y * factor.y);
      }
    }
  }
};

// sums += A [16 * Rows, depth] * B [16 * Columns, depth]^T, of a warp; `depth` is a multiple of 8.
// sums[i][j][h] is the fragment of rows 16 i.. and columns 16 j + 8 h.. `a_rows`, `b_rows`: those that there are of either;
// for those behind them the last is read again.
template <class T, int Rows, int Columns, class Prepare = AsItIs>
__device__ __forceinline__ void multiply(float (&sums)[Rows][Columns][2][4], SharedPtr<const T> a, int a_pitch,
                                         SharedPtr<const T> b, int b_pitch, int depth, Prepare prepare = {},
                                         int a_rows = 16 * Rows, int b_rows = 16 * Columns) {
  const int lane = lane_index();
  const auto a_row = [&](int i) { return least(16 * i + lane % 16, a_rows - 1) * a_pitch; };
  int k = 0;
#pragma unroll 2
  for (; k + 16 <= depth; k += 16) {
    std::uint32_t factors[Rows][4];
#pragma unroll
    for (int i = 0; i < Rows; ++i) {
      ldmatrix(factors[i], a + (a_row(i) + lane / 16 * 8 + k));
      prepare(factors[i], k);
    }
#pragma unroll
    for (int j = 0; j < Columns; ++j) {
      const int b_row = least(16 * j + lane / 16 * 8 + lane % 8, b_rows - 1) * b_pitch;
      std::uint32_t others[4];
      ldmatrix(others, b + (b_row + lane / 8 % 2 * 8 + k));
      const std::uint32_t first[2] = {others[0], others[1]}, second[2] = {others[2], others[3]};
#pragma unroll
      for (int i = 0; i < Rows; ++i) {
        mma<T>(sums[i][j][0], factors[i], first);
        mma<T>(sums[i][j][1], factors[i], second);
      }
    }
  }
  if (k == depth) return;
  // The last 8: lanes 16 and up hold addresses that nothing reads, and so repeat others.
  std::uint32_t factors[Rows][2];
#pragma unroll
  for (int i = 0; i < Rows; ++i) {
    ldmatrix(factors[i], a + (a_row(i) + k));
    prepare(factors[i], k);
  }
#pragma unroll
  for (int j = 0; j < Columns; ++j) {
    std::uint32_t others[2];
    ldmatrix(others, b + (least(16 * j + lane % 16, b_rows - 1) * b_pitch + k));
    const std::uint32_t first[1] = {others[0]}, second[1] = {others[1]};
#pragma unroll
    for (int i = 0; i < Rows; ++i) {
      mma<T>(sums[i][j][0], factors[i], first);
      mma<T>(sums[i][j][1], factors[i], second);
    }
  }
}

// Copies a matrix [rows, columns] of global memory, `stride` elements from row to row, into shared memory; rows from
// `present` on and columns from `wide` on are zeros. `columns`, `wide` and `stride` are multiples of 8.
template <class T>
__device__ __forceinline__ void copy_matrix(SharedPtr<T> to, int pitch, int rows, int columns, GlobalPtr<const T> from,
                                            int stride, int present, int wide, int threads) {
  const int chunks = columns / 8;
  for (int i = thread_index(); i < rows * chunks; i += threads) {
    const int row = i / chunks, column = i % chunks * 8;
    const bool wanted = row < present && column < wide;
    copy_async(to + (row * pitch + column), wanted ? from + (std::int64_t{row} * stride + column) : from, wanted);
  }
}

}  // namespace mbv3fast
