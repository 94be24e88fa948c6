// Squeeze-excite across a cluster. What one block must tell the others is a vector, and goes into the shared memory of
// each of them; sums are in the order of the blocks.
#pragma once

#include "excite.cuh"
#include "network_stream.cuh"

namespace mbv3fast {

static_assert(kExciteThreads == kNetworkThreads, "whose rows are multiplied by as many");

// Bytes of a layer's chunk, [rows, columns] and a bias each, before the biases.
__host__ __device__ constexpr int linear_bytes(int rows, int columns) { return round_up(rows * columns * 2, 16); }

// The products of `rows` rows in a chunk with a vector, + bias: use(Total).
template <class T, int Lanes, class Use>
__device__ __forceinline__ void multiply_chunk(SharedPtr<std::uint8_t> chunk, int rows, int columns,
                                               SharedPtr<const float> vector, Use use) {
  const auto matrix = view<const T>(chunk);
  const auto bias = view<const float>(chunk + linear_bytes(rows, columns));
  const auto finish = [&](Total total) {
    total.value += load<float>(bias + total.row);
    use(total);
  };
  if (columns % 8 == 0) {
    multiply_rows<8, Lanes, 1, 1, T>(matrix, columns, rows, vector, finish);
  } else if (columns % 2 == 0) {
    multiply_rows<2, Lanes, 1, 1, T>(matrix, columns, rows, vector, finish);
  } else {
    multiply_rows<1, Lanes, 1, 1, T>(matrix, columns, rows, vector, finish);
  }
}

// Sums of so many pixels of `channels` channels: use(channel, sum) for each.
template <class T, class Use>
__device__ __forceinline__ void sum_pixels(SharedPtr<const T> pixels, int pitch, int count, int channels, Use use) {
  for (int c = 2 * thread_index(); c < channels; c += 2 * kNetworkThreads) {
    float2 sum = {0.0f, 0.0f};
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
      const float2 value = unpack<T>(load<std::uint32_t>(pixels + (i * pitch + c)));
      sum.x += value.x, sum.y += value.y;
    }
    use(c, sum.x), use(c + 1, sum.y);
  }
}

// A number to the same place of every block of the cluster.
__device__ __forceinline__ void tell_all(SharedPtr<float> to, float value, const Place& place) {
  for (int rank = 0; rank < place.size; ++rank) store(peer(to, rank), value);
}

// out[i] = what `finish` makes of i and of the sum of what all blocks told, [blocks, pitch], for the first `count`.
template <class Finish>
__device__ __forceinline__ void add_parts(SharedPtr<const float> parts, int pitch, int count, SharedPtr<float> out,
                                          const Place& place, Finish finish) {
  for (int i = thread_index(); i < count; i += kNetworkThreads) {
    float sum = 0.0f;
    for (int rank = 0; rank < place.size; ++rank) sum += load<float>(parts + (rank * pitch + i));
    store(out + i, finish(i, sum));
  }
}

// The sums over this block's pixels: of a channel to the block in whose slice it is, or of all to all; and of what came
// the means of this block's slice.
template <class T>
__device__ __forceinline__ void mean_of_rows(const Stage& s, const Place& place, SharedPtr<const T> windowed, int pixels) {
  const Squeeze& q = s.squeeze;
  const auto parts = shared_at<float>(q.parts), means = shared_at<float>(q.means);
  sum_pixels<T>(windowed, s.windowed_pitch, pixels, s.channels, [&](int c, float sum) {
    const auto to = parts + (place.rank * q.slice + (q.shared ? c % q.slice : c));
    q.shared ? store(peer(to, c / q.slice), sum) : tell_all(to, sum, place);
  });
  sync_cluster();
  const int own = q.shared ? least(q.slice, s.channels - place.rank * q.slice) : q.slice;  // no less than 0 are summed
  add_parts(parts, q.slice, own, means, place, [&](int, float sum) { return sum * q.per_pixel; });
  for (int i = (own > 0 ? own : 0) + thread_index(); i < q.slice; i += kNetworkThreads) store(means + i, 0.0f);
}

// The scale of all channels, or of this block's slice where it has no others; `pixels` of them lie in shared memory. Where
// blocks share channels, the hidden units are sums of what each makes of its own means.
template <class T>
__device__ __forceinline__ void excite(const Stage& s, Stream<T>& stream, const Place& place, SharedPtr<const T> windowed,
                                       int pixels) {
  const Squeeze& q = s.squeeze;
  const bool in_rows = s.kind == StageKind::rows, alone = in_rows && !q.shared;
  const auto means = shared_at<float>(q.means), hidden = shared_at<float>(q.hidden), scale = shared_at<float>(q.scale);
  const auto told = shared_at<float>(q.told);
  const Activation activation = static_cast<Activation>(q.activation);
  if (in_rows) {
    mean_of_rows<T>(s, place, windowed, pixels);
  } else {
    sum_pixels<T>(windowed, s.windowed_pitch, pixels, s.channels,
                  [&](int c, float sum) { store(means + c, sum * q.per_pixel); });
  }
  for (int first = 0; first < q.squeezed; first += q.units) {
    multiply_chunk<T, 8>(stream.acquire(), least(q.units, q.squeezed - first), q.slice, means, [&](Total total) {
      if (!alone) return give_all(told + (place.rank * q.squeezed + first + total.row), total, place.size);
      if (total.copy == 0) store(hidden + (first + total.row), activate(activation, total.value));
    });
    stream.release();
  }
  if (!alone) {
    sync_cluster();
    add_parts(told, q.squeezed, q.squeezed, hidden, place, [&](int, float sum) { return activate(activation, sum); });
  }
  const int begin = in_rows && q.shared ? place.rank * q.slice : 0;
  for (int first = 0; first < q.slice; first += q.rows) {
    multiply_chunk<T, 8>(stream.acquire(), least(q.rows, q.slice - first), q.squeezed, hidden, [&](Total total) {
      const int channel = begin + first + total.row;
      total.value = hardsigmoid(total.value);
      if (channel >= s.channels) return;
      if (in_rows && q.shared) return give_all(scale + channel, total, place.size);
      if (total.copy == 0) store(scale + channel, total.value);
    });
    stream.release();
  }
  if (in_rows && q.shared) sync_cluster();
}

}  // namespace mbv3fast
