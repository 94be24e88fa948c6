// mbv3fast_network: the whole network in one launch. A cluster of blocks takes an image from pixels to logits, its
// activations in their shared memory; only weights come from outside. What it does is data: see network_stage.cuh.
#include "network_ends.cuh"
#include "network_residual.cuh"

namespace mbv3fast {
namespace {

constexpr int kClusters = 90;  // the first compute capability that has them, 9.0

// When this block comes to a stage.
template <class T>
__device__ __forceinline__ void stamp(const Network<T>& p, int stage) {
  if (p.stamps && thread_index() == 0) {
    store(p.stamps + (static_cast<std::int64_t>(blockIdx.x) * (p.stage_count + 1) + stage), now());
  }
}

// The table sets out for shared memory, where no stage waits for its own line.
template <class T>
__device__ __forceinline__ SharedPtr<std::uint8_t> copy_table(const Network<T>& p) {
  const SharedPtr<std::uint8_t> table = shared_memory() + p.table;
  const int bytes = p.stage_count * static_cast<int>(sizeof(Stage));
  for (int i = 16 * thread_index(); i < bytes; i += 16 * kNetworkThreads) copy_async(table + i, p.stages + i);
  commit_copies();
  return table;
}

template <class T>
__global__ void __launch_bounds__(kNetworkThreads, 1) network_kernel(const __grid_constant__ Network<T> p) {
  const Place place{static_cast<int>(cluster_rank()), p.cluster};
  const auto stages = view<const Stage>(copy_table(p));
  const int first = static_cast<int>(blockIdx.x) / p.cluster;
  Stream<T> stream(p, place.rank, (p.images - first + p.clusters - 1) / p.clusters);
  wait_for_predecessor();
  start_successor();
  wait_for_copies<kSlots - 1>();  // the table is there, chunks needn't
  __syncthreads();
  for (std::int64_t image = first; image < p.images; image += p.clusters) {
#pragma unroll 1
    for (int i = 0; i < p.stage_count; ++i) {
      stamp(p, i);
      const Stage s = load<Stage>(stages + i);
      switch (s.kind) {
        case StageKind::stem: run_stem(p, s, stream, place, image); break;
        case StageKind::block:
        case StageKind::mean: run_block(s, stream, place); break;
        case StageKind::linear: run_linear(p, s, stream, place, image, i + 1 == p.stage_count); break;
      }
    }
    stamp(p, p.stage_count);
  }
}

using Args = mbv3fast_network_args;
constexpr int kMostClusters = 1 << 16;
constexpr std::int64_t kFarthest = std::int64_t{1} << 40;  // elements from one to the next

void need_cluster(int blocks) {
  need(blocks > 0 && blocks <= 16 && (blocks & (blocks - 1)) == 0, "cluster", blocks, "1, 2, 4, 8 or 16");
}

std::int64_t table_bytes(const Args& a) { return std::int64_t{a.stage_count} * static_cast<int>(sizeof(Stage)); }

void need_multiple(const char* name, const void* pointer, std::size_t bytes) {
  const auto rest = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(pointer) % bytes);
  need(rest == 0, name, rest, "an address that is a multiple of " + std::to_string(bytes));
}

void check(const Args& a) {
  need_pointer(a.weights, "weights");
  need_pointer(a.stages, "stages");
  need_pointer(a.chunks, "chunks");
  need(a.x != nullptr, "x", 0, "a tensor");
  need_multiple("x", a.x, a.takes_bytes ? 1 : 2);
  need_multiple("stamps", a.stamps, sizeof(std::int64_t));
  const std::int64_t along[4] = {a.along_images, a.along_channels, a.along_rows, a.along_columns};
  for (const std::int64_t one : along) need(one >= 0 && one < kFarthest, "along_..", one, "0 or more, fewer than 2^40");
  need_pointer(a.out, "out");
  if (a.takes_bytes) need_pointer(a.factor, "factor"), need_pointer(a.shift, "shift");
  need(a.channels > 0 && a.channels <= kStemChannels, "channels", a.channels, "1 to 4");
  need_area("height, width", a.height, a.width);
  need(a.images >= 0 && a.images < INT32_MAX - kMostClusters, "images", a.images, "0 or more, fewer than 2^31");
  need(a.stage_count > 0, "stage_count", a.stage_count, "1 or more");
  need(a.stage_bytes == sizeof(Stage), "stage_bytes", a.stage_bytes, std::to_string(sizeof(Stage)));
  need(a.chunk_count > 0, "chunk_count", a.chunk_count, "1 or more");
  need(a.outputs > 0, "outputs", a.outputs, "1 or more");
  need(a.weight_bytes > 0 && a.weight_bytes % 16 == 0, "weight_bytes", a.weight_bytes, "a multiple of 16");
  need(a.slot > 0 && a.slot % 16 == 0, "slot", a.slot, "a multiple of 16");
  const std::int64_t least = std::int64_t{kSlots} * a.slot + table_bytes(a);
  need(least <= a.shared_bytes && a.shared_bytes % 16 == 0, "shared_bytes", a.shared_bytes,
       std::to_string(least) + " for slots and stages, and a multiple of 16");
  need_cluster(a.cluster);
  need(a.clusters > 0 && a.clusters <= kMostClusters, "clusters", a.clusters, "1 to 2^16");
  need_dtype(a.dtype);
}

template <class T>
int run(const Args& a, void* stream) {
  const Device device = current_device();
  if (device.capability < kClusters) {
    const std::string got = std::to_string(device.capability / 10) + "." + std::to_string(device.capability % 10);
    throw Refused{"compute capability: got " + got + ", needs 9.0 or more: clusters of blocks"};
  }
  if (a.images == 0) return 0;
  Network<T> p = {};
  const std::int64_t along[4] = {a.along_images, a.along_channels, a.along_rows, a.along_columns};
  const std::int64_t last = (a.images - 1) * along[0] + (a.channels - 1) * along[1] + (a.height - 1) * along[2] +
                            (a.width - 1) * along[3];
  p.weights = weights(static_cast<const std::uint8_t*>(a.weights), a.weight_bytes);
  p.stages = weights(static_cast<const std::uint8_t*>(a.stages), a.stage_count * sizeof(Stage));
  p.chunks = weights(static_cast<const Chunk*>(a.chunks), a.chunk_count);
  if (a.takes_bytes) p.bytes = activations(static_cast<const std::uint8_t*>(a.x), last + 1);
  if (!a.takes_bytes) p.x = activations(static_cast<const T*>(a.x), last + 1);
  p.factor = weights(a.factor, a.channels), p.shift = weights(a.shift, a.channels);
  p.out = activations(static_cast<T*>(a.out), a.images * a.outputs);
  p.stamps = activations(a.stamps, a.stamps ? std::int64_t{a.cluster} * a.clusters * (a.stage_count + 1) : 0);
  for (int i = 0; i < 4; ++i) p.along[i] = along[i];
  p.images = static_cast<int>(a.images), p.stage_count = a.stage_count, p.chunk_count = a.chunk_count;
  p.cluster = a.cluster, p.clusters = a.clusters;
  p.slot = a.slot, p.table = a.shared_bytes - table_bytes(a);
  Launch how;
  how.blocks = std::int64_t{a.cluster} * a.clusters;
  how.threads = kNetworkThreads;
  how.shared_bytes = a.shared_bytes;
  how.cluster = a.cluster;
  how.overlapped = a.overlapped != 0;
  how.stream = stream;
  need_blocks(how.blocks);
  need_shared("shared_bytes", a.shared_bytes, how.shared_bytes, device);
  return launch<network_kernel<T>>("network", how, p);
}

// As many as the chip runs at once; 0 where it has no such clusters, or not with so much shared memory.
template <class T>
int count_clusters(int cluster, std::int64_t shared_bytes) {
  const Device device = current_device();
  if (device.capability < kClusters || shared_bytes > device.shared_limit) return 0;
  Launch how;
  how.blocks = how.cluster = cluster, how.threads = kNetworkThreads, how.shared_bytes = shared_bytes;
  return most_clusters<network_kernel<T>>(how);
}

}  // namespace
}  // namespace mbv3fast

int mbv3fast_network_clusters(int32_t cluster, int32_t shared_bytes, int32_t dtype, int32_t* clusters) {
  using namespace mbv3fast;
  return guarded("network_clusters", [&] {
    need_cluster(cluster);
    need(shared_bytes > 0, "shared_bytes", shared_bytes, "1 or more");
    need_dtype(dtype);
    if (clusters == nullptr) throw Refused{"clusters: got null"};
    *clusters = dtype == MBV3FAST_FLOAT16 ? count_clusters<float16>(cluster, shared_bytes)
                                          : count_clusters<bfloat16>(cluster, shared_bytes);
    return 0;
  });
}

int mbv3fast_network(const mbv3fast_network_args* args, void* stream) {
  using namespace mbv3fast;
  return guarded("network", [&] {
    if (args == nullptr) throw Refused{"args: got null"};
    check(*args);
    return args->dtype == MBV3FAST_FLOAT16 ? run<float16>(*args, stream) : run<bfloat16>(*args, stream);
  });
}
