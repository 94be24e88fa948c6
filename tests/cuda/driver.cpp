// Calls every function of the library, on memory of exactly the sizes that it is told: for sanitizers, which know them.
// Its argument is the folder of a network's tables, as tests/cuda/test_sanitizers.py leaves them.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "mbv3fast.h"

namespace {

// Tensors by themselves on the heap, so that what lies beside one is nobody's.
class Memory {
 public:
  // Numbers about +-1/8, of float16 (bits whose exponent is 12 of 31) or float32.
  void* halves(std::size_t count) {
    auto* data = static_cast<std::uint16_t*>(take(2 * count));
    for (std::size_t i = 0; i < count; ++i) {
      data[i] = static_cast<std::uint16_t>(0x3000 | (i * 7919 % 64) << 3 | i % 2 << 15);
    }
    return data;
  }
  float* floats(std::size_t count) {
    auto* data = static_cast<float*>(take(4 * count));
    for (std::size_t i = 0; i < count; ++i) data[i] = static_cast<float>(i * 7919 % 64) / 256;
    return data;
  }
  void* bytes(const std::string& content) { return std::memcpy(take(content.size()), content.data(), content.size()); }
  // Poisoned: not a number in both dtypes.
  void* out(std::size_t bytes) {
    outputs_.push_back({static_cast<std::uint16_t*>(take(bytes)), bytes / 2});
    return std::memset(outputs_.back().data, 0xFF, bytes);
  }
  // Whether every output was written.
  bool written() const {
    for (const Output& output : outputs_) {
      for (std::size_t i = 1; i < output.count; i += 2) {
        if (output.data[i] == 0xFFFF) return false;
      }
    }
    return true;
  }

 private:
  struct Output {
    std::uint16_t* data;
    std::size_t count;
  };
  struct Free {
    void operator()(void* data) const { std::free(data); }
  };
  void* take(std::size_t bytes) {
    all_.emplace_back(std::aligned_alloc(16, (bytes + 15) / 16 * 16));
    return all_.back().get();
  }

  std::vector<std::unique_ptr<void, Free>> all_;
  std::vector<Output> outputs_;
};

void check(const char* name, int code, const Memory& memory) {
  if (code != 0 || !memory.written()) {
    std::printf("%s: %s\n", name, code != 0 ? mbv3fast_error(code) : "an output was not written");
    std::exit(1);
  }
  std::printf("%s runs\n", name);
}

void depthwise_conv() {
  Memory m;
  mbv3fast_depthwise_conv_args a = {};
  a.images = 2, a.height = 9, a.width = 11, a.out_height = 5, a.out_width = 6, a.channels = 24;
  a.kernel = 5, a.stride = 2, a.top = a.left = 2;
  a.dtype = MBV3FAST_FLOAT16, a.activation = MBV3FAST_RELU, a.overlapped = 1;
  a.tile_height = 4, a.tile_width = 8, a.groups = 4;
  a.x = m.halves(2 * 9 * 11 * 24), a.weight = m.halves(25 * 24), a.bias = m.floats(24);
  a.out = m.out(2 * 2 * 5 * 6 * 24), a.pool = static_cast<float*>(m.out(4 * 2 * 2 * 24));
  check("depthwise_conv", mbv3fast_depthwise_conv(&a, nullptr), m);
}

void inverted_residual() {
  Memory m;
  mbv3fast_inverted_residual_args a = {};
  a.images = 2, a.height = a.out_height = 7, a.width = a.out_width = 10, a.inputs = a.outputs = 24, a.channels = 72;
  a.kernel = 3, a.stride = 1, a.top = a.left = 1;
  a.dtype = MBV3FAST_FLOAT16, a.activation = MBV3FAST_RELU, a.overlapped = 1;
  a.tile_height = 4, a.tile_width = 8, a.step = 32, a.splits = 1, a.adds_input = 1;
  a.x = m.halves(2 * 70 * 24), a.expand_weight = m.halves(72 * 24), a.expand_bias = m.floats(72);
  a.weight = m.halves(9 * 72), a.bias = m.floats(72);
  a.project_weight = m.halves(24 * 72), a.project_bias = m.floats(24);
  a.out = m.out(2 * 2 * 70 * 24);
  check("inverted_residual", mbv3fast_inverted_residual(&a, nullptr), m);
}

void pointwise_conv() {
  Memory m;
  mbv3fast_pointwise_conv_args a = {};
  a.images = 2, a.pixels = 21, a.inputs = 72, a.outputs = 40;
  a.dtype = MBV3FAST_FLOAT16, a.activation = MBV3FAST_NONE, a.overlapped = 1;
  a.tile_rows = 16, a.tile_outputs = 48;
  a.x = m.halves(2 * 21 * 72), a.scale = m.floats(2 * 72), a.weight = m.halves(40 * 72), a.bias = m.floats(40);
  a.residual = m.halves(2 * 21 * 40), a.out = m.out(2 * 2 * 21 * 40);
  check("pointwise_conv", mbv3fast_pointwise_conv(&a, nullptr), m);
}

void excite(int cluster, bool two) {
  Memory m;
  mbv3fast_excite_args a = {};
  a.images = 2, a.tiles = 3, a.pixels = 21, a.channels = 40, a.squeezed = 10;
  a.dtype = MBV3FAST_FLOAT16, a.activation = MBV3FAST_RELU, a.overlapped = 1;
  a.cluster = cluster, a.images_per_cluster = 1;
  a.pool = m.floats(2 * 3 * 40), a.fc1_weight = m.halves(10 * 40), a.fc1_bias = m.floats(10);
  a.fc2_weight = m.halves(40 * 10), a.fc2_bias = m.floats(40), a.scale = static_cast<float*>(m.out(4 * 2 * 40));
  if (two) a.hidden = static_cast<float*>(m.out(4 * 2 * 10));
  check("excite", mbv3fast_excite(&a, nullptr), m);
}

void squeeze_excite(int cluster) {
  Memory m;
  mbv3fast_squeeze_excite_args a = {};
  a.images = 2, a.pixels = 21, a.channels = 40, a.squeezed = 10;
  a.dtype = MBV3FAST_FLOAT16, a.activation = MBV3FAST_RELU, a.overlapped = 1;
  a.cluster = cluster, a.images_per_cluster = 1;
  a.x = m.halves(2 * 21 * 40), a.fc1_weight = m.halves(10 * 40), a.fc1_bias = m.floats(10);
  a.fc2_weight = m.halves(40 * 10), a.fc2_bias = m.floats(40), a.out = m.out(2 * 2 * 21 * 40);
  std::int32_t tiles = -1;
  check("squeeze_excite_tiles", mbv3fast_squeeze_excite_tiles(&a, &tiles), Memory());
  if (tiles > 0) {
    a.pool = static_cast<float*>(m.out(4 * 2 * tiles * 40)), a.scale = static_cast<float*>(m.out(4 * 2 * 40));
  }
  check("squeeze_excite", mbv3fast_squeeze_excite(&a, nullptr), m);
}

std::string content(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void network(const std::string& folder) {
  Memory m;
  mbv3fast_network_args a = {};
  std::ifstream numbers(folder + "/numbers");
  numbers >> a.channels >> a.height >> a.width >> a.outputs >> a.stage_count >> a.chunk_count >> a.cluster >> a.slot >>
      a.shared_bytes;
  const std::string weights = content(folder + "/weights"), stages = content(folder + "/stages");
  a.weights = m.bytes(weights), a.stages = m.bytes(stages), a.chunks = m.bytes(content(folder + "/chunks"));
  a.weight_bytes = static_cast<std::int64_t>(weights.size());
  a.stage_bytes = static_cast<std::int32_t>(stages.size()) / a.stage_count;
  a.images = 3, a.clusters = 2, a.dtype = MBV3FAST_FLOAT16, a.overlapped = 1;
  const std::int64_t pixels = std::int64_t{a.height} * a.width;
  a.along_images = a.channels * pixels, a.along_channels = pixels, a.along_rows = a.width, a.along_columns = 1;
  a.x = m.halves(static_cast<std::size_t>(3 * a.channels * pixels));
  a.out = m.out(2 * 3 * static_cast<std::size_t>(a.outputs));
  std::int32_t clusters = 0;
  check("network_clusters", mbv3fast_network_clusters(a.cluster, a.shared_bytes, a.dtype, &clusters), Memory());
  check("network", mbv3fast_network(&a, nullptr), m);
}

}  // namespace

int main(int, char** arguments) {
  for (std::uint64_t seed = 0; seed < 3; ++seed) {
    mbv3fast_emulate(90, seed);
    depthwise_conv();
    inverted_residual();
    pointwise_conv();
    excite(4, false), excite(1, false), excite(1, true);
    squeeze_excite(2), squeeze_excite(1);
    network(arguments[1]);
  }
}
