// An inverted residual in one launch: expand, depthwise, project + residual; the expanded activation never leaves the chip.
//
// A block computes a tile of output pixels. It loads the input pixels that the tile's windows touch once, then goes through
// the expanded channels, kChannels a step:
//   expand     [pixels inside the image, inputs] x [inputs, channels] on tensor cores, + bias, activation, into `expanded`,
//              whose pixels outside of the image stay 0
//   depthwise  in float32 on CUDA cores, + bias, activation, into `windowed`; a thread has a pair of channels and a strip
//              of pixels, reads every pixel of their windows once, and keeps taps and sums in registers
//   project    [pixels of the tile, channels] x [channels, outputs] on tensor cores, sums in registers until the last step
// Two barriers a step; the next step's weights are on their way while windows are summed. Where squeeze-excite follows,
// nothing is projected: `windowed` goes to memory, and its sums over the tile; the channels may then be split over blocks.
#pragma once

#include "inverted_residual_block.cuh"

namespace mbv3fast {

// Zeros for the pixels outside of the image, and for the rows that only fill up a fragment.
template <class C>
__device__ __forceinline__ void clear(const Block<C>& b) {
  const uint4 zeros = {0, 0, 0, 0};
  for (int i = thread_index(); i < C::kHeight * C::kWidth * C::kPitch / 8; i += C::kThreads) store(b.expanded + 8 * i, zeros);
  const int first = C::kPixels * C::kPitch / 8, end = C::kRows * C::kPitch / 8;
  for (int i = first + thread_index(); i < end; i += C::kThreads) store(b.windowed + 8 * i, zeros);
}

// The pixels inside the image, one behind another, and the place of each in `expanded`.
template <class C>
__device__ __forceinline__ void load_input(const Block<C>& b) {
  const int chunks = b.p.inputs / 8, inside = b.inside(), rows = round_up(inside, 16 * C::kExpandRows);
  for (int m = thread_index(); m < inside; m += C::kThreads) {
    const int y = b.y_begin + m / b.inside_width(), x = b.x_begin + m % b.inside_width();
    store(b.places + m, std::int32_t{y * C::kWidth + x});
  }
  for (int i = thread_index(); i < rows * chunks; i += C::kThreads) {
    const int m = i / chunks, channel = i % chunks * 8;
    const bool wanted = m < inside;
    const int y = b.y_begin + m / b.inside_width(), x = b.x_begin + m % b.inside_width();
    const auto from = wanted ? b.p.x + (b.pixel(y, x) + channel) : b.p.x;
    copy_async(b.input + (m * b.at.input_pitch + channel), from, wanted);
  }
}

// Where x is what others expand to: the step's channels of the pixels inside the image, straight into `expanded`.
template <class C>
__device__ __forceinline__ void load_expanded(const Block<C>& b, int channel) {
  const int chunks = C::kChannels / 8;
  for (int i = thread_index(); i < b.inside() * chunks; i += C::kThreads) {
    const int m = i / chunks, c = i % chunks * 8;
    const int y = b.y_begin + m / b.inside_width(), x = b.x_begin + m % b.inside_width();
    const bool wanted = channel + c < b.end_channel;
    const auto from = wanted ? b.p.x + (b.pixel(y, x) + channel + c) : b.p.x;
    copy_async(b.expanded + ((y * C::kWidth + x) * C::kPitch + c), from, wanted);
  }
}

template <class C>
__device__ __forceinline__ void load_weights(const Block<C>& b, int step) {
  using T = typename C::T;
  const int channel = b.first_channel + step * C::kChannels, wide = b.end_channel - channel;
  if constexpr (C::kExpands) {
    copy_matrix<T>(b.template weights<T>(step, b.at.expand_weight), b.at.input_pitch, C::kChannels, b.p.inputs,
                   b.p.expand_weight + std::int64_t{channel} * b.p.inputs, b.p.inputs, wide, b.p.inputs, C::kThreads);
  }
  copy_matrix<T>(b.template weights<T>(step, b.at.weight), C::kChannels, C::kKernel * C::kKernel, C::kChannels,
                 b.p.weight + channel, b.p.channels, C::kKernel * C::kKernel, wide, C::kThreads);
  if constexpr (C::kOutputs > 0) {
    copy_matrix<T>(b.template weights<T>(step, b.at.project_weight), C::kPitch, C::kWarpsN * C::kColumnsOfWarp * 16,
                   C::kChannels, b.p.project_weight + channel, b.p.channels, b.p.outputs, wide, C::kThreads);
  }
  for (int i = thread_index(); i < C::kChannels / 4; i += C::kThreads) {
    const bool wanted = 4 * i < wide;
    if constexpr (C::kExpands) {
      const auto from = wanted ? b.p.expand_bias + (channel + 4 * i) : b.p.expand_bias;
      copy_async(b.template weights<float>(step, b.at.expand_bias) + 4 * i, from, wanted);
    }
    const auto from = wanted ? b.p.bias + (channel + 4 * i) : b.p.bias;
    copy_async(b.template weights<float>(step, b.at.bias) + 4 * i, from, wanted);
  }
}

template <class C>
__device__ __forceinline__ void expand(const Block<C>& b, int step) {
  using T = typename C::T;
  constexpr int kColumns = C::kChannels / 16;
  const int warp = thread_index() / 32, lane = lane_index(), inside = b.inside();
  const auto weight = b.template weights<T>(step, b.at.expand_weight);
  const auto bias = b.template weights<float>(step, b.at.expand_bias);
  for (int m = 16 * C::kExpandRows * warp; m < inside; m += 16 * C::kExpandRows * C::kWarps) {
    float sums[C::kExpandRows][kColumns][2][4] = {};
    multiply<T>(sums, b.input + m * b.at.input_pitch, b.at.input_pitch, weight, b.at.input_pitch, b.p.inputs);
#pragma unroll
    for (int i = 0; i < 2 * C::kExpandRows; ++i) {
      const int pixel = m + 8 * i + lane / 4;
      if (pixel >= inside) continue;
      const auto line = b.expanded + load<std::int32_t>(b.places + pixel) * C::kPitch;
#pragma unroll
      for (int j = 0; j < 2 * kColumns; ++j) {
        const int c = 8 * j + lane % 4 * 2;
        const float2 offset = load<float2>(bias + c);
        const float* sum = &sums[i / 2][j / 2][j % 2][i % 2 * 2];
        const float first = activate<C::kActivation>(sum[0] + offset.x), second = activate<C::kActivation>(sum[1] + offset.y);
        store(line + c, pack<T>(first, second));
      }
    }
  }
}

template <class C>
__device__ __forceinline__ void depthwise(const Block<C>& b, int step) {
  using T = typename C::T;
  constexpr int kColumns = (C::kStripWidth - 1) * C::kStride + C::kKernel;
  constexpr int kLines = (C::kStripHeight - 1) * C::kStride + C::kKernel;
  const int channel = thread_index() % C::kLanes * 2, group = thread_index() / C::kLanes;
  const auto weight = b.template weights<T>(step, b.at.weight);
  const float2 bias = load<float2>(b.template weights<float>(step, b.at.bias) + channel);
  float2 taps[C::kKernel][C::kKernel], total = {0.0f, 0.0f};
#pragma unroll
  for (int tap = 0; tap < C::kKernel * C::kKernel; ++tap) {
    taps[tap / C::kKernel][tap % C::kKernel] = unpack<T>(load<std::uint32_t>(weight + (tap * C::kChannels + channel)));
  }
  for (int strip = group; strip < C::kStrips; strip += C::kGroups) {
    const int row = strip / (C::kTileWidth / C::kStripWidth) * C::kStripHeight;
    const int column = strip % (C::kTileWidth / C::kStripWidth) * C::kStripWidth;
    float2 sums[C::kStripHeight][C::kStripWidth];
#pragma unroll
    for (int o = 0; o < C::kStripHeight * C::kStripWidth; ++o) sums[o / C::kStripWidth][o % C::kStripWidth] = bias;
#pragma unroll
    for (int y = 0; y < kLines; ++y) {
      const auto line = b.expanded + (((row * C::kStride + y) * C::kWidth + column * C::kStride) * C::kPitch + channel);
      float2 values[kColumns];
#pragma unroll
      for (int x = 0; x < kColumns; ++x) values[x] = unpack<T>(load<std::uint32_t>(line + x * C::kPitch));
#pragma unroll
      for (int r = 0; r < C::kStripHeight; ++r) {
        const int ky = y - r * C::kStride;
        if (ky < 0 || ky >= C::kKernel) continue;
#pragma unroll
        for (int o = 0; o < C::kStripWidth; ++o) {
#pragma unroll
          for (int kx = 0; kx < C::kKernel; ++kx) {
            const float2 value = values[o * C::kStride + kx], tap = taps[ky][kx];
            sums[r][o].x = fmaf(value.x, tap.x, sums[r][o].x);
            sums[r][o].y = fmaf(value.y, tap.y, sums[r][o].y);
          }
        }
      }
    }
#pragma unroll
    for (int o = 0; o < C::kStripHeight * C::kStripWidth; ++o) {
      const int r = row + o / C::kStripWidth, c = column + o % C::kStripWidth;
      const float2 sum = sums[o / C::kStripWidth][o % C::kStripWidth];
      const float first = activate<C::kActivation>(sum.x), second = activate<C::kActivation>(sum.y);
      store(b.windowed + ((r * C::kTileWidth + c) * C::kPitch + channel), pack<T>(first, second));
      if (b.row + r < b.p.out_height && b.column + c < b.p.out_width) total.x += first, total.y += second;
    }
  }
  if constexpr (C::kOutputs == 0) {
    store(view<float>(shared_memory() + b.at.sums) + (group * C::kChannels + channel), total);
  }
}

// The step's channels of the tile, and their sums, to memory.
template <class C>
__device__ __forceinline__ void write_windowed(const Block<C>& b, int step) {
  using T = typename C::T;
  const int channel = b.first_channel + step * C::kChannels;
  constexpr int kChunks = C::kChannels / 8;
  for (int i = thread_index(); i < C::kPixels * kChunks; i += C::kThreads) {
    const int pixel = i / kChunks, c = i % kChunks * 8;
    const int y = b.row + pixel / C::kTileWidth, x = b.column + pixel % C::kTileWidth;
    if (y >= b.p.out_height || x >= b.p.out_width || channel + c >= b.end_channel) continue;
    const std::int64_t place = ((b.image * b.p.out_height + y) * b.p.out_width + x) * b.p.channels + channel + c;
    store(b.p.out + place, load<Eight<T>>(b.windowed + (pixel * C::kPitch + c)));
  }
  const int c = thread_index();
  if (c >= C::kChannels || channel + c >= b.end_channel) return;
  float total = 0.0f;
  for (int group = 0; group < C::kGroups; ++group) {
    total += load<float>(view<float>(shared_memory() + b.at.sums) + (group * C::kChannels + c));
  }
  store(b.p.pool + ((b.image * b.p.tiles_x * b.p.tiles_y + b.tile) * b.p.channels + channel + c), total);
}

template <class C>
using Projected = float[C::kRowsOfWarp][C::kColumnsOfWarp][2][4];

template <class C>
__device__ __forceinline__ void project(const Block<C>& b, int step, Projected<C>& sums) {
  using T = typename C::T;
  const int warp = thread_index() / 32, column = warp / C::kWarpsM * C::kColumnsOfWarp * 16;
  const auto weight = b.template weights<T>(step, b.at.project_weight) + column * C::kPitch;
#pragma unroll
  for (int i = 0; i < C::kRowsOfWarp; ++i) {
    const int fragment = warp % C::kWarpsM + i * C::kWarpsM;
    if (fragment * 16 >= C::kRows) continue;
    auto& part = reinterpret_cast<float(&)[1][C::kColumnsOfWarp][2][4]>(sums[i]);
    multiply<T>(part, b.windowed + fragment * 16 * C::kPitch, C::kPitch, weight, C::kPitch, C::kChannels);
  }
}

// The sums + bias through shared memory, so that whole lines are written; + residual.
template <class C>
__device__ __forceinline__ void write_projected(const Block<C>& b, const Projected<C>& sums) {
  using T = typename C::T;
  constexpr int kPitch = pitch_of(C::kOutputs);
  const int warp = thread_index() / 32, lane = lane_index();
  const SharedPtr<T> staged = view<T>(shared_memory() + b.at.staged);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < C::kRowsOfWarp; ++i) {
    const int fragment = warp % C::kWarpsM + i * C::kWarpsM;
    if (fragment * 16 >= C::kRows) continue;
#pragma unroll
    for (int j = 0; j < 2 * C::kColumnsOfWarp; ++j) {
      const int n = warp / C::kWarpsM * C::kColumnsOfWarp * 16 + 8 * j + lane % 4 * 2;
      if (n >= b.p.outputs) continue;
      const float2 bias = load<float2>(b.p.project_bias + n);
      const auto& sum = sums[i][j / 2][j % 2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int m = fragment * 16 + 8 * half + lane / 4;
        store(staged + (m * kPitch + n), pack<T>(sum[2 * half] + bias.x, sum[2 * half + 1] + bias.y));
      }
    }
  }
  __syncthreads();
  const int chunks = b.p.outputs / 8;
  for (int i = thread_index(); i < C::kPixels * chunks; i += C::kThreads) {
    const int pixel = i / chunks, n = i % chunks * 8;
    const int y = b.row + pixel / C::kTileWidth, x = b.column + pixel % C::kTileWidth;
    if (y >= b.p.out_height || x >= b.p.out_width) continue;
    const std::int64_t place = ((b.image * b.p.out_height + y) * b.p.out_width + x) * b.p.outputs + n;
    Eight<T> eight = load<Eight<T>>(staged + (pixel * kPitch + n));
    if (b.p.residual || b.p.adds_input) {
      float values[8], others[8];
      eight.unpack(values);
      const auto residual = b.p.adds_input ? load<Eight<T>>(b.input_at(y, x) + n) : load<Eight<T>>(b.p.residual + place);
      residual.unpack(others);
#pragma unroll
      for (int c = 0; c < 8; ++c) values[c] += others[c];
      eight = Eight<T>::packed(values);
    }
    store(b.p.out + place, eight);
  }
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kBlocks) inverted_residual_kernel(
    const __grid_constant__ InvertedResidual<typename C::T> p) {
  const Block<C> b(p);
  const int steps = ceil_div(b.end_channel - b.first_channel, C::kChannels);
  start_successor();
  if (steps <= 0) return;
  load_weights(b, 0);
  clear(b);
  wait_for_predecessor();
  if constexpr (C::kExpands) load_input(b);
  commit_copies();
  wait_for_copies<0>();
  __syncthreads();
  Projected<C> sums = {};
  for (int step = 0; step < steps; ++step) {
    if constexpr (C::kExpands) {
      expand(b, step);
    } else {
      load_expanded(b, b.first_channel + step * C::kChannels);
      commit_copies();
      wait_for_copies<0>();
    }
    __syncthreads();
    if (step + 1 < steps) load_weights(b, step + 1);
    commit_copies();
    depthwise(b, step);
    wait_for_copies<0>();
    __syncthreads();
    if constexpr (C::kOutputs > 0) {
      project(b, step, sums);
    } else {
      write_windowed(b, step);
    }
  }
  if constexpr (C::kOutputs > 0) write_projected(b, sums);
}

}  // namespace mbv3fast
