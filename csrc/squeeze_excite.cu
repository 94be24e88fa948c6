// x * scale, the whole of squeeze-excite: by one cluster an image that holds it in shared memory, or by three kernels.
//
// The cluster's blocks have slices of the image's pixels, and of both matrices. Sums of a slice's pixels go to the
// blocks that have those channels, and from there means to all blocks: that moves less between them than all sums of
// all blocks would. Then hidden units and the scale go to all blocks, and every block writes its pixels.
#include "excite_host.cuh"

namespace mbv3fast {
namespace {

using Args = mbv3fast_squeeze_excite_args;

constexpr int kPixelsOfThread = 8;  // that it sums, in a tile
constexpr int kEightsOfThread = 2;  // that it multiplies

template <class T>
struct SqueezeExcite {
  GlobalPtr<const T> x;  // [images, pixels, channels]
  GlobalPtr<T> out;
  GlobalPtr<float> pool;         // [images, tiles, channels]
  GlobalPtr<const float> scale;  // [images, channels]
  Excite<T> excite;
  int pixels, channels;
  int blocks;          // of an image: tiles, or what multiplies
  int pixels_of_block;
};

// Parts into which a block's threads cut its pixels, to sum them.
__host__ __device__ constexpr int lines_of(int channels) {
  return channels / 8 > kExciteThreads ? 1 : kExciteThreads / (channels / 8);
}

// The sums of `count` pixels, in lines_of parts [.., channels]: part i has pixels i, i + lines, ...
template <class T, class X>
__device__ __forceinline__ void sum_pixels(X x, int count, int channels, SharedPtr<float> parts) {
  const int eights = channels / 8, lines = lines_of(channels);
  for (int i = thread_index(); i < lines * eights; i += kExciteThreads) {
    const int channel = i % eights * 8;
    float sums[8] = {};
#pragma unroll 4
    for (int pixel = i / eights; pixel < count; pixel += lines) {
      float values[8];
      load<Eight<T>>(x + (pixel * channels + channel)).unpack(values);
#pragma unroll
      for (int c = 0; c < 8; ++c) sums[c] += values[c];
    }
    store(parts + 8 * i, float4{sums[0], sums[1], sums[2], sums[3]});
    store(parts + (8 * i + 4), float4{sums[4], sums[5], sums[6], sums[7]});
  }
}

// out = x * scale for eights first.. to end, which begin at channel 0.
template <class T, class X, class Scale>
__device__ __forceinline__ void multiply_by(X x, Scale scale, GlobalPtr<T> out, int first, int end, int channels) {
#pragma unroll 1
  for (int i = first + thread_index(); i < end; i += kExciteThreads) {
    float values[8], factors[8];
    load<Eight<T>>(x + 8 * i).unpack(values);
    load_floats(factors, scale + i % (channels / 8) * 8);
#pragma unroll
    for (int c = 0; c < 8; ++c) values[c] *= factors[c];
    store(out + 8 * i, Eight<T>::packed(values));
  }
}

template <class T>
__global__ void __launch_bounds__(kExciteThreads)
    squeeze_excite_kernel(const __grid_constant__ SqueezeExcite<T> params) {
  const Excite<T>& p = params.excite;
  const int cluster = p.slices, rank = static_cast<int>(blockIdx.x) % cluster, channels = p.channels;
  const std::int64_t image = static_cast<int>(blockIdx.x) / cluster;
  const Slice<T> fc1 = fc1_slice(p, rank), fc2 = fc2_slice(p, rank);
  const int first = least(rank * params.pixels_of_block, params.pixels);
  const int count = least(params.pixels_of_block, params.pixels - first), eights = count * channels / 8;
  const std::int64_t place = (image * params.pixels + first) * channels;
  const auto x = shared_at<T>(p.at.x);
  const auto parts = shared_at<float>(p.at.parts), gathered = shared_at<float>(p.at.gathered);
  const auto means = shared_at<float>(p.at.means), hidden = shared_at<float>(p.at.hidden);
  const auto scale = shared_at<float>(p.at.scale);

  start_successor();
  arrive_cluster();
  fc1.fetch();
  fc2.fetch();
  wait_for_predecessor();
  for (int i = thread_index(); i < eights; i += kExciteThreads) copy_async(x + 8 * i, params.x + (place + 8 * i));
  commit_copies();
  wait_for_copies<0>();
  __syncthreads();
  sum_pixels<T>(x, count, channels, parts);
  __syncthreads();
  wait_cluster();  // all blocks are there, to be written to
  for (int i = thread_index(); i < channels / 4; i += kExciteThreads) {
    const int owner = 4 * i / p.rows;
    const auto to = gathered + (rank * p.rows + 4 * i % p.rows);
    store(peer(to, owner), sum_rows(parts + 4 * i, lines_of(channels), channels));
  }
  sync_cluster();
  const int fours = (fc2.end - fc2.begin) / 4;
  for (int i = thread_index(); i < fours * cluster; i += kExciteThreads) {
    const int four = i % fours * 4;
    store_mean(peer(means + (fc2.begin + four), i / fours), sum_rows(gathered + four, cluster, p.rows), p.per_pixel);
  }
  sync_cluster();
  squeeze<4, 1>(p, fc1, [&](const Total& t) { give_all(hidden + t.row, t, cluster); });
  sync_cluster();
  excite<4, 1>(p, fc2, [&](const Total& t) { give_all(scale + t.row, t, cluster); });
  sync_cluster();
  multiply_by(x, scale, params.out + place, 0, eights, channels);
}

template <class T>
__global__ void __launch_bounds__(kExciteThreads) pool_kernel(const __grid_constant__ SqueezeExcite<T> p) {
  const int tile = static_cast<int>(blockIdx.x) % p.blocks, first = tile * p.pixels_of_block;
  const std::int64_t image = static_cast<int>(blockIdx.x) / p.blocks;
  const auto parts = view<float>(shared_memory());
  start_successor();
  wait_for_predecessor();
  const int count = least(p.pixels_of_block, p.pixels - first);
  sum_pixels<T>(p.x + (image * p.pixels + first) * p.channels, count, p.channels, parts);
  __syncthreads();
  for (int i = thread_index(); i < p.channels / 4; i += kExciteThreads) {
    const float4 sum = sum_rows(parts + 4 * i, lines_of(p.channels), p.channels);
    store(p.pool + ((image * p.blocks + tile) * p.channels + 4 * i), sum);
  }
}

template <class T>
__global__ void __launch_bounds__(kExciteThreads) apply_kernel(const __grid_constant__ SqueezeExcite<T> p) {
  const int first = static_cast<int>(blockIdx.x) % p.blocks * kExciteThreads * kEightsOfThread;
  const std::int64_t image = static_cast<int>(blockIdx.x) / p.blocks, place = image * p.pixels * p.channels;
  const int end = least(first + kExciteThreads * kEightsOfThread, p.pixels * (p.channels / 8));
  start_successor();
  wait_for_predecessor();
  multiply_by(p.x + place, p.scale + image * p.channels, p.out + place, first, end, p.channels);
}

int tiles_of(const Args& a) { return ceil_div(a.pixels, kPixelsOfThread * lines_of(a.channels)); }

template <class T>
SqueezeExcite<T> params(const Args& a) {
  SqueezeExcite<T> p = {};
  const std::int64_t elements = a.images * a.pixels * a.channels;
  p.x = activations(static_cast<const T*>(a.x), elements);
  p.out = activations(static_cast<T*>(a.out), elements);
  p.pixels = a.pixels, p.channels = a.channels;
  return p;
}

// The one launch; nothing where a cluster has no room for an image, or there is none.
template <class T>
bool plan_at_once(const Args& a, const Device& device, SqueezeExcite<T>& p, Launch& how) {
  if (a.cluster == 1) return false;
  p.excite = excite_of<T>(a, a.cluster);
  p.pixels_of_block = ceil_div(a.pixels, a.cluster);
  Excite<T>& e = p.excite;
  Arena arena;
  e.at.x = arena.take(std::int64_t{2} * p.pixels_of_block * a.channels);
  e.at.parts = arena.take_floats(std::int64_t{lines_of(a.channels)} * a.channels);
  e.at.gathered = arena.take_floats(std::int64_t{a.cluster} * e.rows);
  e.at.means = arena.take_floats(a.channels);
  e.at.hidden = arena.take_floats(a.squeezed);
  e.at.scale = arena.take_floats(a.channels);
  if (!stage(e, arena, device.shared_limit)) return false;
  how.blocks = a.images * a.cluster;
  how.cluster = a.cluster;
  how.shared_bytes = arena.size;
  return true;
}

mbv3fast_excite_args excite_args(const Args& a, int tiles) {
  mbv3fast_excite_args excite = {};
  excite.pool = a.pool, excite.hidden = a.hidden, excite.scale = a.scale;
  excite.fc1_weight = a.fc1_weight, excite.fc1_bias = a.fc1_bias;
  excite.fc2_weight = a.fc2_weight, excite.fc2_bias = a.fc2_bias;
  excite.images = a.images, excite.tiles = tiles, excite.pixels = a.pixels;
  excite.channels = a.channels, excite.squeezed = a.squeezed;
  excite.dtype = a.dtype, excite.activation = a.activation;
  excite.cluster = a.cluster, excite.images_per_cluster = a.images_per_cluster;
  excite.overlapped = a.overlapped;
  return excite;
}

template <class T>
int run_in_three(const Args& a, SqueezeExcite<T> p, Launch how, void* stream) {
  if (a.pool == nullptr || a.scale == nullptr) {
    throw Refused{"pool, scale: got null, needs scratch where one launch cannot do all"};
  }
  need_pointer(a.pool, "pool");
  need_pointer(a.scale, "scale");
  const int tiles = tiles_of(a), eights = a.pixels * (a.channels / 8);
  const int multiplying = ceil_div(eights, kExciteThreads * kEightsOfThread);
  const mbv3fast_excite_args excite = excite_args(a, tiles);
  refuse_excite(excite);
  p.pool = activations(a.pool, a.images * tiles * a.channels);
  p.blocks = tiles, p.pixels_of_block = kPixelsOfThread * lines_of(a.channels);
  how.blocks = a.images * tiles;
  how.shared_bytes = std::int64_t{4} * lines_of(a.channels) * a.channels;
  Launch last = how;
  last.blocks = a.images * multiplying;
  last.shared_bytes = 0;
  for (const Launch& each : {how, last}) need_blocks(each.blocks);
  int error = launch<pool_kernel<T>>("pool", how, p);
  if (error == 0) error = mbv3fast_excite(&excite, stream);
  if (error != 0) return error;
  p.scale = activations(static_cast<const float*>(a.scale), a.images * a.channels);
  p.blocks = multiplying;
  return launch<apply_kernel<T>>("apply", last, p);
}

template <class T>
int run(const Args& a, void* stream) {
  if (a.images == 0) return 0;
  const Device device = current_device();
  check_cluster(a.cluster, device);
  SqueezeExcite<T> p = params<T>(a);
  Launch how = {0, kExciteThreads};
  how.overlapped = a.overlapped != 0;
  how.stream = stream;
  if (!plan_at_once(a, device, p, how)) return run_in_three(a, p, how, stream);
  need_blocks(how.blocks);
  return launch<squeeze_excite_kernel<T>>("squeeze_excite", how, p);
}

void check_image(const Args& a) {
  const std::int64_t elements = std::int64_t{a.pixels} * a.channels;
  need(elements < (std::int64_t{1} << 31), "pixels * channels", elements, "fewer than 2^31");
}

}  // namespace
}  // namespace mbv3fast

int mbv3fast_squeeze_excite(const mbv3fast_squeeze_excite_args* args, void* stream) {
  using namespace mbv3fast;
  return guarded("squeeze_excite", [&] {
    if (args == nullptr) throw Refused{"args: got null"};
    need_pointer(args->x, "x");
    need_pointer(args->out, "out");
    check_matrices(*args);
    check_sizes(*args);
    check_image(*args);
    return args->dtype == MBV3FAST_FLOAT16 ? run<float16>(*args, stream) : run<bfloat16>(*args, stream);
  });
}

int mbv3fast_squeeze_excite_tiles(const mbv3fast_squeeze_excite_args* args, int32_t* tiles) {
  using namespace mbv3fast;
  return guarded("squeeze_excite_tiles", [&] {
    if (args == nullptr || tiles == nullptr) throw Refused{"args, tiles: got null"};
    check_sizes(*args);
    check_image(*args);
    const Device device = current_device();
    check_cluster(args->cluster, device);
    SqueezeExcite<float16> p;
    Launch how = {0, 0};
    *tiles = plan_at_once(*args, device, p, how) ? 0 : tiles_of(*args);
    return 0;
  });
}
