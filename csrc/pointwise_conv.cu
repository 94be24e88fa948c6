// 1x1 convolution: activation((x * scale) weight^T + bias) + residual.
//
// A block computes a tile of pixels and outputs. Slices of x and of the weights come through a ring of cp.async stages, one
// barrier a stage; the scale of squeeze-excite, one for each image and input, is multiplied into fragments between shared
// memory and tensor cores, so that x is neither read nor written for it. With few pixels the warps of a block share its
// inputs (kWarpsK), so that fewer stages come one after another; their sums are added in a fixed order.
#include "launch.cuh"
#include "tensor.cuh"

namespace mbv3fast {
namespace {

using Args = mbv3fast_pointwise_conv_args;

template <class T>
struct PointwiseConv {
  GlobalPtr<const T> x;            // [rows, inputs]
  GlobalPtr<const float> scale;    // [rows / pixels, inputs], or null
  GlobalPtr<const T> weight;       // [outputs, inputs]
  GlobalPtr<const float> bias;     // [outputs]
  GlobalPtr<const T> residual;     // [rows, outputs], or null
  GlobalPtr<T> out;
  int pixels, inputs, outputs;     // a tile ends with its `pixels`: those of an image, or all rows
  int tiles_m, tiles_n;
  Activation activation;
};

// Rows and Columns: fragments of 16 that a warp computes.
template <class Number, int Rows, int Columns, int WarpsM, int WarpsK>
struct Traits {
  using T = Number;
  static constexpr int kRows = Rows, kColumns = Columns, kWarpsM = WarpsM, kWarpsK = WarpsK;
  static constexpr int kThreads = 32 * WarpsM * WarpsK;
  static constexpr int kBlocks = 3;  // of a multiprocessor, as its shared memory has room for; unasked, ptxas spills
  static constexpr int kM = 16 * Rows * WarpsM, kN = 16 * Columns;
  static constexpr int kDepth = 64, kSlice = kDepth * WarpsK;  // inputs of a warp, and of a block, in a stage
  static constexpr int kStages = WarpsK > 1 ? 2 : 3;
  static constexpr int kPitch = pitch_of(kSlice), kSumPitch = kN + 4;
  static constexpr int kStage = (kM + kN) * kPitch * 2;        // bytes
  static constexpr int kSums = WarpsK * kM * kSumPitch * 4;    // over the stages, when these are done
  static constexpr int kRing = kStages * kStage > kSums ? kStages * kStage : kSums;

  static int shared_bytes(int inputs) { return kRing + round_up(inputs, kSlice) * 4; }
};

template <class C>
struct Block {
  using T = typename C::T;
  const PointwiseConv<T>& p;
  std::int64_t first_row;  // of its image
  int row, column;         // of the tile, within
  SharedPtr<float> scale;

  __device__ explicit Block(const PointwiseConv<T>& params) : p(params) {
    const int block = static_cast<int>(blockIdx.x);
    column = block % p.tiles_n * C::kN;
    row = block / p.tiles_n % p.tiles_m * C::kM;
    first_row = std::int64_t{block / p.tiles_n / p.tiles_m} * p.pixels;
    scale = view<float>(shared_memory() + C::kRing);
  }
  __device__ SharedPtr<T> rows(int stage) const { return view<T>(shared_memory() + stage % C::kStages * C::kStage); }
  __device__ SharedPtr<T> columns(int stage) const { return rows(stage) + C::kM * C::kPitch; }
};

template <class C>
__device__ __forceinline__ void load_weights(const Block<C>& b, int stage) {
  const int k = stage * C::kSlice;
  copy_matrix<typename C::T>(b.columns(stage), C::kPitch, C::kN, C::kSlice,
                             b.p.weight + (std::int64_t{b.column} * b.p.inputs + k), b.p.inputs, b.p.outputs - b.column,
                             b.p.inputs - k, C::kThreads);
}

template <class C>
__device__ __forceinline__ void load_rows(const Block<C>& b, int stage) {
  const int k = stage * C::kSlice;
  copy_matrix<typename C::T>(b.rows(stage), C::kPitch, C::kM, C::kSlice,
                             b.p.x + ((b.first_row + b.row) * b.p.inputs + k), b.p.inputs, b.p.pixels - b.row,
                             b.p.inputs - k, C::kThreads);
}

// The scale of the tile's image; zeros behind it, where the last slice is not full.
template <class C>
__device__ __forceinline__ void load_scale(const Block<C>& b) {
  const auto from = b.p.scale + b.first_row / b.p.pixels * b.p.inputs;
  for (int k = 4 * thread_index(); k < round_up(b.p.inputs, C::kSlice); k += 4 * C::kThreads) {
    copy_async(b.scale + k, k < b.p.inputs ? from + k : from, k < b.p.inputs);
  }
}

template <class C>
using Sums = float[C::kRows][C::kColumns][2][4];

template <class C>
__device__ __forceinline__ void add_products(const Block<C>& b, int stage, Sums<C>& sums) {
  using T = typename C::T;
  const int warp = thread_index() / 32, k = warp / C::kWarpsM * C::kDepth, left = b.p.inputs - stage * C::kSlice - k;
  const int depth = left < 0 ? 0 : left < C::kDepth ? left : C::kDepth;
  const auto rows = b.rows(stage) + (warp % C::kWarpsM * 16 * C::kRows * C::kPitch + k);
  const auto columns = b.columns(stage) + k;
  if (b.p.scale) {
    multiply<T>(sums, rows, C::kPitch, columns, C::kPitch, depth, Scaled<T>{b.scale + (stage * C::kSlice + k)});
  } else {
    multiply<T>(sums, rows, C::kPitch, columns, C::kPitch, depth);
  }
}

// All warps' sums through shared memory, so that whole lines are written.
template <class C>
__device__ __forceinline__ void write(const Block<C>& b, const Sums<C>& sums) {
  using T = typename C::T;
  const int warp = thread_index() / 32, lane = lane_index();
  const SharedPtr<float> all = view<float>(shared_memory());
  const auto mine = all + (warp / C::kWarpsM * C::kM + warp % C::kWarpsM * 16 * C::kRows) * C::kSumPitch;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 2 * C::kRows; ++i) {
#pragma unroll
    for (int j = 0; j < 2 * C::kColumns; ++j) {
      const float* sum = &sums[i / 2][j / 2][j % 2][i % 2 * 2];
      store(mine + ((8 * i + lane / 4) * C::kSumPitch + 8 * j + lane % 4 * 2), float2{sum[0], sum[1]});
    }
  }
  __syncthreads();
  for (int i = thread_index(); i < C::kM * (C::kN / 8); i += C::kThreads) {
    const int m = i / (C::kN / 8), n = i % (C::kN / 8) * 8;
    if (b.row + m >= b.p.pixels || b.column + n >= b.p.outputs) continue;
    const std::int64_t place = (b.first_row + b.row + m) * b.p.outputs + b.column + n;
    float values[8], others[8] = {};
    if (b.p.residual) load<Eight<T>>(b.p.residual + place).unpack(others);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float4 total = load<float4>(b.p.bias + (b.column + n + 4 * half));
#pragma unroll
      for (int k = 0; k < C::kWarpsK; ++k) {
        const float4 part = load<float4>(all + ((k * C::kM + m) * C::kSumPitch + n + 4 * half));
        total = {total.x + part.x, total.y + part.y, total.z + part.z, total.w + part.w};
      }
      values[4 * half] = total.x, values[4 * half + 1] = total.y;
      values[4 * half + 2] = total.z, values[4 * half + 3] = total.w;
    }
#pragma unroll
    for (int c = 0; c < 8; ++c) values[c] = activate(b.p.activation, values[c]) + others[c];
    store(b.p.out + place, Eight<T>::packed(values));
  }
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kBlocks) pointwise_conv_kernel(
    const __grid_constant__ PointwiseConv<typename C::T> p) {
  const Block<C> b(p);
  const int stages = ceil_div(p.inputs, C::kSlice);
  start_successor();
  load_weights(b, 0);
  wait_for_predecessor();
  if (p.scale) load_scale(b);
  load_rows(b, 0);
  commit_copies();
#pragma unroll
  for (int stage = 1; stage < C::kStages - 1; ++stage) {
    if (stage < stages) load_weights(b, stage), load_rows(b, stage);
    commit_copies();
  }
  Sums<C> sums = {};
  for (int stage = 0; stage < stages; ++stage) {
    wait_for_copies<C::kStages - 2>();
    __syncthreads();
    const int next = stage + C::kStages - 1;
    if (next < stages) load_weights(b, next), load_rows(b, next);
    commit_copies();
    add_products(b, stage, sums);
  }
  write(b, sums);
}

void check(const Args& a) {
  need_pointer(a.x, "x");
  need_pointer(a.weight, "weight");
  need_pointer(a.bias, "bias");
  need_pointer(a.out, "out");
  if (a.scale != nullptr) need_pointer(a.scale, "scale");
  if (a.residual != nullptr) need_pointer(a.residual, "residual");
  need(a.pixels > 0 && a.pixels < (1 << 30), "pixels", a.pixels, "1 or more, fewer than 2^30");
  need_channels("inputs", a.inputs);
  need_channels("outputs", a.outputs);
  need_images(a.images, std::int64_t{a.pixels} * (a.inputs > a.outputs ? a.inputs : a.outputs));
  need_dtype(a.dtype);
  need_activation(a.activation);
}

template <class C>
int run(const Args& a, void* stream) {
  using T = typename C::T;
  PointwiseConv<T> p;
  const std::int64_t rows = a.images * a.pixels, images = a.scale == nullptr ? 1 : a.images;
  p.x = activations(static_cast<const T*>(a.x), rows * a.inputs);
  p.scale = activations(a.scale, a.scale == nullptr ? 0 : a.images * a.inputs);
  p.weight = weights(static_cast<const T*>(a.weight), std::int64_t{a.outputs} * a.inputs);
  p.bias = weights(a.bias, a.outputs);
  p.residual = activations(static_cast<const T*>(a.residual), a.residual == nullptr ? 0 : rows * a.outputs);
  p.out = activations(static_cast<T*>(a.out), rows * a.outputs);
  if (rows == 0) return 0;
  need(rows / images < (std::int64_t{1} << 31) - C::kM, "images * pixels", rows, "fewer than 2^31: split the batch");
  p.pixels = static_cast<int>(rows / images), p.inputs = a.inputs, p.outputs = a.outputs;
  p.tiles_m = ceil_div(p.pixels, C::kM), p.tiles_n = ceil_div(a.outputs, C::kN);
  p.activation = static_cast<Activation>(a.activation);
  Launch how;
  how.blocks = images * p.tiles_m * p.tiles_n;
  need_blocks(how.blocks);
  how.threads = C::kThreads;
  how.shared_bytes = C::shared_bytes(a.scale == nullptr ? 0 : a.inputs);
  need_shared("inputs", a.inputs, how.shared_bytes, current_device());
  how.overlapped = a.overlapped != 0;
  how.stream = stream;
  return launch<pointwise_conv_kernel<C>>("pointwise_conv", how, p);
}

// Tiles [tile_rows, tile_outputs]; the small ones split the inputs over warps.
template <class T>
int choose(const Args& a, void* stream) {
  const auto is = [&](int rows, int outputs) { return a.tile_rows == rows && a.tile_outputs == outputs; };
  if (is(16, 16)) return run<Traits<T, 1, 1, 1, 4>>(a, stream);
  if (is(16, 48)) return run<Traits<T, 1, 3, 1, 4>>(a, stream);
  if (is(32, 32)) return run<Traits<T, 1, 2, 2, 2>>(a, stream);
  if (is(64, 48)) return run<Traits<T, 1, 3, 4, 1>>(a, stream);
  if (is(64, 80)) return run<Traits<T, 1, 5, 4, 1>>(a, stream);
  if (is(128, 48)) return run<Traits<T, 2, 3, 4, 1>>(a, stream);
  if (is(128, 80)) return run<Traits<T, 2, 5, 4, 1>>(a, stream);
  throw Refused{"tile_rows, tile_outputs: got " + std::to_string(a.tile_rows) + ", " + std::to_string(a.tile_outputs) +
                ", needs 16, 16; 16, 48; 32, 32; 64, 48; 64, 80; 128, 48 or 128, 80"};
}

}  // namespace
}  // namespace mbv3fast

int mbv3fast_pointwise_conv(const mbv3fast_pointwise_conv_args* args, void* stream) {
  using namespace mbv3fast;
  return guarded("pointwise_conv", [&] {
    if (args == nullptr) throw Refused{"args: got null"};
    check(*args);
    return args->dtype == MBV3FAST_FLOAT16 ? choose<float16>(*args, stream) : choose<bfloat16>(*args, stream);
  });
}
