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

#include "launch.cuh"
#include "tensor.cuh"

namespace mbv3fast {

template <class T>
struct InvertedResidual {
  GlobalPtr<const T> x;                // [images, height, width, inputs]
  GlobalPtr<const T> expand_weight;    // [channels, inputs], unless x is what others expand to
  GlobalPtr<const float> expand_bias;  // [channels]
  GlobalPtr<const T> weight;           // [kernel, kernel, channels]
  GlobalPtr<const float> bias;         // [channels]
  GlobalPtr<const T> project_weight;   // [outputs, channels]
  GlobalPtr<const float> project_bias;  // [outputs]
  GlobalPtr<const T> residual;         // [images, out_height, out_width, outputs], or null; x itself if `adds_input`
  GlobalPtr<T> out;                    // the same; [.., channels] where nothing is projected
  GlobalPtr<float> pool;               // [images, tiles, channels], where nothing is projected
  int height, width, out_height, out_width, inputs, channels, outputs, top, left;
  int tiles_x, tiles_y, splits;        // of the channels, over blocks
  bool adds_input;
};

// What is decided when a kernel is compiled. Outputs: a multiple of 16 that covers all, 0 where nothing is projected.
template <class Number, int Kernel, int Stride, Activation Act, int TileHeight, int TileWidth, int StripHeight,
          int StripWidth, int Channels, int Outputs, bool Expands>
struct Traits {
  using T = Number;
  static constexpr int kKernel = Kernel, kStride = Stride, kChannels = Channels, kOutputs = Outputs;
  static constexpr int kTileHeight = TileHeight, kTileWidth = TileWidth, kStripHeight = StripHeight,
                       kStripWidth = StripWidth;
  static constexpr Activation kActivation = Act;
  static constexpr bool kExpands = Expands;
  static constexpr int kWarps = 4, kThreads = 32 * kWarps;
  static constexpr int kBlocks = Kernel == 5 || Outputs > 32 ? 2 : 3;  // whose registers a multiprocessor has at least
  static constexpr int kHeight = (TileHeight - 1) * Stride + Kernel, kWidth = (TileWidth - 1) * Stride + Kernel;
  static constexpr int kPixels = TileHeight * TileWidth, kRows = round_up(kPixels, 16);
  static constexpr int kPitch = pitch_of(Channels);                 // of `expanded` and `windowed`
  static constexpr int kExpandRows = Channels >= 64 ? 1 : 2;        // fragments of pixels that a warp expands at once
  static constexpr int kInputRows = round_up(kHeight * kWidth, 16 * kExpandRows);
  static constexpr int kLanes = Channels / 2;                       // threads along the channels of a strip
  static constexpr int kGroups = kThreads / kLanes;                 // strips at once
  static constexpr int kStrips = TileHeight / StripHeight * (TileWidth / StripWidth);
  static constexpr int kWarpsM = kRows / 16 < kWarps ? (kRows / 16 < 2 ? 1 : 2) : kWarps, kWarpsN = kWarps / kWarpsM;
  static constexpr int kRowsOfWarp = ceil_div(kRows / 16, kWarpsM);  // in fragments, as the next
  static constexpr int kColumnsOfWarp = Outputs == 0 ? 1 : ceil_div(Outputs / 16, kWarpsN);
  static_assert(Expands || Outputs <= Channels, "all that is staged must fit where windowed is");
  static_assert(TileHeight % StripHeight == 0 && TileWidth % StripWidth == 0 && Channels % 16 == 0 && Outputs % 16 == 0);
};

// Where things lie in shared memory, in bytes.
template <class C>
struct Layout {
  static constexpr int kNumber = 2;  // bytes
  int input_pitch, expand_weight, weight, project_weight, expand_bias, bias, weights_size;
  int input, expanded, windowed, places, sums, weights, staged, size;

  __host__ __device__ explicit Layout(int inputs) {
    input_pitch = pitch_of(inputs);
    expand_weight = 0;
    weight = expand_weight + (C::kExpands ? C::kChannels * input_pitch * kNumber : 0);
    project_weight = weight + C::kKernel * C::kKernel * C::kChannels * kNumber;
    expand_bias = project_weight + C::kWarpsN * C::kColumnsOfWarp * (C::kOutputs ? 16 : 0) * C::kPitch * kNumber;
    bias = expand_bias + (C::kExpands ? C::kChannels * 4 : 0);
    weights_size = bias + C::kChannels * 4;
    input = 0;
    expanded = input + (C::kExpands ? C::kInputRows * input_pitch * kNumber : 0);
    windowed = expanded + C::kHeight * C::kWidth * C::kPitch * kNumber;
    places = windowed + C::kRows * C::kPitch * kNumber;
    sums = places + C::kInputRows * 4;
    weights = sums + (C::kOutputs ? 0 : C::kGroups * C::kChannels * 4);
    size = weights + 2 * weights_size;
    staged = C::kExpands ? expanded : windowed;  // over what the steps leave, but for the input
    const int end = staged + C::kRows * pitch_of(C::kOutputs) * kNumber;
    if (C::kOutputs && size < end) size = end;
  }
};

// A block's part of the work, and its shared memory.
template <class C>
struct Block {
  using T = typename C::T;
  const InvertedResidual<T>& p;
  Layout<C> at;
  int tile, row, column;                   // of the first output pixel
  std::int64_t image;
  int y_begin, y_end, x_begin, x_end;      // what of the windows lies inside the image
  int first_channel, end_channel;
  SharedPtr<T> input, expanded, windowed;
  SharedPtr<std::int32_t> places;          // in `expanded`, of the pixels inside

  __device__ explicit Block(const InvertedResidual<T>& params) : p(params), at(params.inputs) {
    const int block = static_cast<int>(blockIdx.x), tiles = p.tiles_x * p.tiles_y;
    const int split = block % p.splits, steps = ceil_div(ceil_div(p.channels, C::kChannels), p.splits);
    tile = block / p.splits % tiles;
    image = block / p.splits / tiles;
    row = tile / p.tiles_x * C::kTileHeight;
    column = tile % p.tiles_x * C::kTileWidth;
    const int y = row * C::kStride - p.top, x = column * C::kStride - p.left;
    y_begin = y < 0 ? -y : 0, x_begin = x < 0 ? -x : 0;
    y_end = y + C::kHeight > p.height ? p.height - y : C::kHeight;
    x_end = x + C::kWidth > p.width ? p.width - x : C::kWidth;
    first_channel = split * steps * C::kChannels;
    end_channel = first_channel + steps * C::kChannels < p.channels ? first_channel + steps * C::kChannels : p.channels;
    const SharedPtr<std::uint8_t> memory = shared_memory();
    input = view<T>(memory + at.input), expanded = view<T>(memory + at.expanded), windowed = view<T>(memory + at.windowed);
    places = view<std::int32_t>(memory + at.places);
  }

  __device__ int inside_width() const { return x_end - x_begin; }
  __device__ int inside() const { return y_end > y_begin && x_end > x_begin ? (y_end - y_begin) * inside_width() : 0; }
  // Of a step's weights, of which two steps' are there.
  template <class N>
  __device__ SharedPtr<N> weights(int step, int offset) const {
    return view<N>(shared_memory() + (at.weights + step % 2 * at.weights_size + offset));
  }
  // Of a pixel of the windows in x, in elements.
  __device__ std::int64_t pixel(int y, int x) const {
    const int first_y = row * C::kStride - p.top, first_x = column * C::kStride - p.left;
    return ((image * p.height + first_y + y) * p.width + first_x + x) * p.inputs;
  }
  // Of the input where an output pixel lies, which is still in shared memory after the last step.
  __device__ SharedPtr<const T> input_at(int out_y, int out_x) const {
    const int y = out_y - row * C::kStride + p.top, x = out_x - column * C::kStride + p.left;
    if constexpr (!C::kExpands) return expanded + (y * C::kWidth + x) * C::kPitch;
    return input + ((y - y_begin) * inside_width() + x - x_begin) * at.input_pitch;
  }
};

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
