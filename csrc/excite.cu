// What squeeze-excite multiplies by, from the sums of tiles: by one cluster, by two launches or by one block.
#include <vector>

#include "excite_host.cuh"

namespace mbv3fast {
namespace {

using Args = mbv3fast_excite_args;

// The means of Images images from `image` on, zeros where there is none. Tiles are spread over threads that sums leave
// idle, so that their loads are in flight together.
template <int Images, class T>
__device__ __forceinline__ void load_means(const Excite<T>& p, std::int64_t image) {
  const int fours = p.channels / 4, sums = Images * fours;
  const auto means = shared_at<float>(p.at.means), partial = shared_at<float>(p.at.parts);
  for (int i = thread_index(); i < sums * p.parts; i += kExciteThreads) {
    const int part = i / sums, of = i - part * sums, which = Images == 1 ? 0 : of / fours;
    const int channel = 4 * (of - which * fours);
    const int tiles = image + which < p.images ? p.tiles : 0;
    const auto from = p.pool + ((image + which) * p.tiles * p.channels + channel);
    float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 4
    for (int tile = part; tile < tiles; tile += p.parts) add(sum, load<float4>(from + std::int64_t{tile} * p.channels));
    if (p.parts == 1) {
      store_mean(means + 4 * i, sum, p.per_pixel);
    } else {
      store(partial + 4 * i, sum);
    }
  }
  __syncthreads();
  if (p.parts == 1) return;
  for (int i = thread_index(); i < sums; i += kExciteThreads) {
    store_mean(means + 4 * i, sum_rows(partial + 4 * i, p.parts, 4 * sums), p.per_pixel);
  }
  __syncthreads();
}

template <int Images, class T>
__device__ __forceinline__ std::int64_t first_image(const Excite<T>& p) {
  return std::int64_t{static_cast<int>(blockIdx.x) / p.slices} * Images;
}

// All of it, by a cluster of p.slices blocks; one block is a cluster by itself.
template <class T, int Images>
__global__ void __launch_bounds__(kExciteThreads) excite_kernel(const __grid_constant__ Excite<T> p) {
  const int rank = static_cast<int>(blockIdx.x) % p.slices;
  const std::int64_t image = first_image<Images>(p);
  const Slice<T> fc1 = fc1_slice(p, rank), fc2 = fc2_slice(p, rank);
  start_successor();
  arrive_cluster();
  fc1.fetch();
  fc2.fetch();
  wait_for_predecessor();
  wait_for_copies<1>();
  load_means<Images>(p, image);
  wait_cluster();  // all blocks are there, to be written to
  const auto hidden = shared_at<float>(p.at.hidden);
  squeeze<4, Images>(p, fc1, [&](const Total& t) { give_all(hidden + (t.image * p.squeezed + t.row), t, p.slices); });
  wait_for_copies<0>();
  sync_cluster();
  excite<4, Images>(p, fc2, [&](const Total& t) {
    if (t.copy == 0 && image + t.image < p.images) store(p.scale + ((image + t.image) * p.channels + t.row), t.value);
  });
}

// Where two launches cut slices as they like: rows that lanes take at once, and with that as many as keep all warps
// busy. One image leaves most of a chip idle, and gets many small slices.
template <int Images>
constexpr int kRowsAtOnce = Images == 1 ? 1 : 4;
template <int Images>
constexpr int kUnitsOfSlice = kExciteThreads / 32 * kRowsAtOnce<Images>;
template <int Images>
constexpr int kChannelsOfSlice = kExciteThreads / 8 * kRowsAtOnce<Images>;

// The first of two launches: hidden units.
template <class T, int Images>
__global__ void __launch_bounds__(kExciteThreads) squeeze_slices_kernel(const __grid_constant__ Excite<T> p) {
  const std::int64_t image = first_image<Images>(p);
  const Slice<T> fc1 = fc1_slice(p, static_cast<int>(blockIdx.x) % p.slices);
  start_successor();
  fc1.fetch();
  wait_for_predecessor();
  wait_for_copies<0>();
  load_means<Images>(p, image);
  squeeze<kRowsAtOnce<Images>, Images>(p, fc1, [&](const Total& t) {
    if (t.copy == 0 && image + t.image < p.images) store(p.hidden + ((image + t.image) * p.squeezed + t.row), t.value);
  });
}

// The second: from them to the scale.
template <class T, int Images>
__global__ void __launch_bounds__(kExciteThreads) excite_slices_kernel(const __grid_constant__ Excite<T> p) {
  const std::int64_t image = first_image<Images>(p);
  const Slice<T> fc2 = fc2_slice(p, static_cast<int>(blockIdx.x) % p.slices);
  start_successor();
  fc2.fetch();
  wait_for_predecessor();
  for (int i = thread_index(); i < Images * p.squeezed; i += kExciteThreads) {
    const bool present = image + i / p.squeezed < p.images;
    store(shared_at<float>(p.at.hidden) + i, present ? load<float>(p.hidden + (image * p.squeezed + i)) : 0.0f);
  }
  wait_for_copies<0>();
  __syncthreads();
  excite<kRowsAtOnce<Images>, Images>(p, fc2, [&](const Total& t) {
    if (t.copy == 0 && image + t.image < p.images) store(p.scale + ((image + t.image) * p.channels + t.row), t.value);
  });
}

void check(const Args& a) {
  check_matrices(a);
  check_sizes(a);
  need_pointer(a.pool, "pool");
  need_pointer(a.scale, "scale");
  need(a.tiles > 0 && a.tiles < (1 << 30), "tiles", a.tiles, "1 or more, fewer than 2^30");
  need_images(a.images, std::int64_t{a.tiles} * a.channels);
}

// A launch that has been checked.
template <class T>
struct Planned {
  const char* name;
  int (*start)(const char*, const Launch&, const Excite<T>&);
  Excite<T> p;
  Launch how;
};

// `arena` has what the kernel needs beside its slices.
template <auto Kernel, class T>
Planned<T> planned(const char* name, const Args& a, Excite<T> p, Arena arena, const Device& device, void* stream) {
  const int idle = kExciteThreads / (a.images_per_cluster * (a.channels / 4));
  p.tiles = a.tiles, p.parts = idle < 1 ? 1 : least(idle, a.tiles);
  p.pool = activations(a.pool, a.images * a.tiles * a.channels);
  p.scale = activations(a.scale, a.images * a.channels);
  p.hidden = activations(a.hidden, a.hidden == nullptr ? 0 : a.images * a.squeezed);
  need(stage(p, arena, device.shared_limit), "channels * squeezed", std::int64_t{a.channels} * a.squeezed,
       "fewer: a block has " + std::to_string(device.shared_limit) + " bytes of shared memory");
  Launch how;
  how.blocks = (a.images + a.images_per_cluster - 1) / a.images_per_cluster * p.slices;
  need_blocks(how.blocks);
  how.threads = kExciteThreads;
  how.shared_bytes = arena.size;
  how.overlapped = a.overlapped != 0;
  how.stream = stream;
  return {name, &launch<Kernel, Excite<T>>, p, how};
}

template <class T, int Images>
Planned<T> plan_at_once(const Args& a, const Device& device, void* stream) {
  Excite<T> p = excite_of<T>(a, a.cluster);
  Arena arena;
  p.at.means = arena.take_floats(std::int64_t{Images} * a.channels);
  p.at.parts = arena.take_floats(4 * kExciteThreads);
  p.at.hidden = arena.take_floats(std::int64_t{Images} * a.squeezed);
  Planned<T> plan = planned<excite_kernel<T, Images>>("excite", a, p, arena, device, stream);
  plan.how.cluster = a.cluster;
  return plan;
}

template <class T, int Images>
Planned<T> plan_squeeze(const Args& a, const Device& device, void* stream) {
  Excite<T> p = excite_of<T>(a, ceil_div(a.squeezed, kUnitsOfSlice<Images>));
  Arena arena;
  p.rows = 0;
  p.at.means = arena.take_floats(std::int64_t{Images} * a.channels);
  p.at.parts = arena.take_floats(4 * kExciteThreads);
  return planned<squeeze_slices_kernel<T, Images>>("squeeze_slices", a, p, arena, device, stream);
}

template <class T, int Images>
Planned<T> plan_excite(const Args& a, const Device& device, void* stream) {
  Excite<T> p = excite_of<T>(a, ceil_div(a.channels, kChannelsOfSlice<Images>));
  Arena arena;
  p.units = 0;
  p.at.hidden = arena.take_floats(std::int64_t{Images} * a.squeezed);
  return planned<excite_slices_kernel<T, Images>>("excite_slices", a, p, arena, device, stream);
}

template <class T, int Images>
std::vector<Planned<T>> plan(const Args& a, void* stream) {
  const Device device = current_device();
  check_cluster(a.cluster, device);
  if (a.cluster > 1 || a.hidden == nullptr) return {plan_at_once<T, Images>(a, device, stream)};
  return {plan_squeeze<T, Images>(a, device, stream), plan_excite<T, Images>(a, device, stream)};
}

// Checks all, then launches, unless that is not wanted.
template <class T>
int run(const Args& a, void* stream, bool wanted) {
  check(a);
  if (a.images == 0) return 0;
  for (const Planned<T>& each : a.images_per_cluster == 1 ? plan<T, 1>(a, stream) : plan<T, 8>(a, stream)) {
    const int error = wanted ? each.start(each.name, each.how, each.p) : 0;
    if (error != 0) return error;
  }
  return 0;
}

int run(const Args& a, void* stream, bool wanted) {
  return a.dtype == MBV3FAST_FLOAT16 ? run<float16>(a, stream, wanted) : run<bfloat16>(a, stream, wanted);
}

}  // namespace

void refuse_excite(const mbv3fast_excite_args& args) { run(args, nullptr, false); }

}  // namespace mbv3fast

int mbv3fast_excite(const mbv3fast_excite_args* args, void* stream) {
  using namespace mbv3fast;
  return guarded("excite", [&] {
    if (args == nullptr) throw Refused{"args: got null"};
    return run(*args, stream, true);
  });
}
