// What a block of inverted_residual.cuh works on: its parameters, what is compiled for a tile, its shared memory.
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

}  // namespace mbv3fast
