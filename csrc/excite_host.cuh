// The host's side of excite.cu and squeeze_excite.cu: what is refused, and how shared memory is cut.
#pragma once

#include "excite.cuh"

namespace mbv3fast {

// Hands out shared memory from its start, 16 bytes at a time.
struct Arena {
  std::int64_t size = 0;

  int take(std::int64_t bytes) {
    const std::int64_t at = size;
    size += (bytes + 15) / 16 * 16;
    return static_cast<int>(at);
  }
  int take_floats(std::int64_t count) { return take(4 * count); }
};

// Shared memory for slices of the matrices: whole ones where there is room, else as many rows at a time as there is
// room for. Whether there is enough.
template <class T>
bool stage(Excite<T>& p, Arena& arena, std::int64_t limit) {
  p.at.fc1_bias = arena.take_floats(p.units);
  p.at.fc2_bias = arena.take_floats(p.rows);
  const std::int64_t unit = std::int64_t{2} * p.channels, eight = std::int64_t{16} * p.squeezed;
  const std::int64_t room = limit - arena.size;
  const std::int64_t first = p.units * unit, second = p.rows / 8 * eight;
  const std::int64_t least_first = room - second > room / 2 ? room - second : room / 2;
  const std::int64_t units = (first < least_first ? first : least_first) / unit;
  const std::int64_t rest = room - units * unit, eights = (second < rest ? second : rest) / eight;
  if (room < 0 || (p.units > 0 && units < 1) || (p.rows > 0 && eights < 1)) return false;
  p.staged_units = static_cast<int>(units), p.staged_rows = static_cast<int>(8 * eights);
  p.at.fc1 = arena.take(units * unit);
  p.at.fc2 = arena.take(eights * eight);
  return true;
}

// What mbv3fast_excite and mbv3fast_squeeze_excite both take.
template <class Args>
void check_matrices(const Args& a) {
  need_pointer(a.fc1_weight, "fc1_weight");
  need_pointer(a.fc1_bias, "fc1_bias");
  need_pointer(a.fc2_weight, "fc2_weight");
  need_pointer(a.fc2_bias, "fc2_bias");
  if (a.hidden != nullptr) need_pointer(a.hidden, "hidden");
}

template <class Args>
void check_sizes(const Args& a) {
  need(a.pixels > 0, "pixels", a.pixels, "1 or more");
  need_channels("channels", a.channels);
  need(a.squeezed > 0 && a.squeezed <= 1 << 20, "squeezed", a.squeezed, "1 to 2^20");
  need_images(a.images, std::int64_t{a.pixels} * a.channels);
  need_dtype(a.dtype);
  need_activation(a.activation);
  const bool power = a.cluster == 1 || a.cluster == 2 || a.cluster == 4 || a.cluster == 8 || a.cluster == 16;
  need(power, "cluster", a.cluster, "1, 2, 4, 8 or 16");
  const bool known = a.images_per_cluster == 1 || a.images_per_cluster == 8;
  need(known, "images_per_cluster", a.images_per_cluster, "1 or 8");
}

// Throws Refused where mbv3fast_excite would refuse.
void refuse_excite(const mbv3fast_excite_args& args);

inline void check_cluster(int cluster, const Device& device) {
  need(cluster == 1 || device.capability >= 90, "cluster", cluster,
       "1 on a chip of compute capability " + std::to_string(device.capability / 10) + "." +
           std::to_string(device.capability % 10) + ": clusters came with 9.0");
}

// The matrices, and how they are cut: a slice's channels are a multiple of 8.
template <class T, class Args>
Excite<T> excite_of(const Args& a, int slices) {
  Excite<T> p = {};
  const std::int64_t elements = std::int64_t{a.channels} * a.squeezed;
  p.fc1_weight = weights(static_cast<const T*>(a.fc1_weight), elements);
  p.fc1_bias = weights(a.fc1_bias, a.squeezed);
  p.fc2_weight = weights(static_cast<const T*>(a.fc2_weight), elements);
  p.fc2_bias = weights(a.fc2_bias, a.channels);
  p.images = a.images, p.channels = a.channels, p.squeezed = a.squeezed;
  p.per_pixel = 1.0f / static_cast<float>(a.pixels);
  p.activation = static_cast<Activation>(a.activation);
  p.slices = slices;
  p.units = ceil_div(a.squeezed, slices), p.rows = round_up(ceil_div(a.channels, slices), 8);
  return p;
}

}  // namespace mbv3fast
