// Squeeze-excite across a cluster. What one block must tell the others is a vector, and goes into the shared memory of
// each of them; sums are in the order of the blocks.
#pragma once

#include "excite.cuh"
#include "network_stream.cuh"

namespace mbv3fast {

static_assert(kExciteThreads == kNetworkThreads, "whose rows are multiplied by as many");

// Bytes of a layer's chunk, [rows, columns] and a bias each, before the biases.
__host__ __device__ constexpr int linear_bytes(int rows, int columns) { return round_up(rows * columns * 2, 16); }

// The products of `rows` rows in a chunk with a vector, + bias: use(Total). Columns are a multiple of 8.
template <class T, int Lanes, class Use>
__device__ __forceinline__ void multiply_chunk(SharedPtr<std::uint8_t> chunk, int rows, int columns,
                                               SharedPtr<const float> vector, Use use) {
  const auto bias = view<const float>(chunk + linear_bytes(rows, columns));
  multiply_rows<8, Lanes, 1, 1, T>(view<const T>(chunk), columns, rows, vector, [&](Total total) {
    total.value += load<float>(bias + total.row);
    use(total);
  });
}

// Sums of so many pixels: use(Total) for each of `channels` channels, a multiple of 8, which four lanes of a warp take for
// one pixel in eight each.
template <class T, class Use>
__device__ __forceinline__ void sum_pixels(SharedPtr<const T> pixels, int pitch, int count, int channels, Use use) {
  const int lane = lane_index(), first = lane / 4;
#pragma unroll 1
  for (int c = thread_index() / 32 * 8; c < channels; c += kNetworkWarps * 8) {
    const SharedPtr<const T> from = pixels + (c + lane % 4 * 2);
    float2 sum = {0.0f, 0.0f};
#pragma unroll 4
    for (int i = first; i < count; i += 8) {
      const float2 value = unpack<T>(load<std::uint32_t>(from + i * pitch));
      sum.x += value.x, sum.y += value.y;
    }
#pragma unroll
    for (int mask = 4; mask < 32; mask *= 2) {
      sum.x += shuffle_xor(sum.x, mask), sum.y += shuffle_xor(sum.y, mask);
    }
    use(Total{c + lane % 4 * 2, 0, sum.x, first, 8}), use(Total{c + lane % 4 * 2 + 1, 0, sum.y, first, 8});
  }
}

// To the same place of every block of the cluster, from the next one on, by the lanes that have it.
__device__ __forceinline__ void tell_all(SharedPtr<float> to, const Total& total, const Place& place) {
#pragma unroll 1
  for (int k = total.copy; k < place.size; k += total.copies) {
    store(peer(to, (place.rank + 1 + k) & (place.size - 1)), total.value);
  }
}

// out[i] = what `finish` makes of the sum over `count` parts, [count, pitch], for i < `length`.
template <class Finish>
__device__ __forceinline__ void add_parts(SharedPtr<const float> parts, int count, int pitch, int length,
                                          SharedPtr<float> out, Finish finish) {
#pragma unroll 1
  for (int i = thread_index(); i < length; i += kNetworkThreads) {
    float sum = 0.0f;
#pragma unroll 2
    for (int part = 0; part < count; ++part) sum += load<float>(parts + (part * pitch + i));
    store(out + i, finish(sum));
  }
}

// The means of this block's slice: sums over this block's pixels go to the block in whose slice a channel is, or to all.
template <class T>
__device__ __forceinline__ void take_means(const Stage& s, const Place& place, SharedPtr<const T> windowed, int pixels) {
  const Squeeze& q = s.squeeze;
  const Member member(s, place);
  const auto parts = shared_at<float>(q.parts), means = shared_at<float>(q.means);
  const Quotient by_slice(q.slice);
  const auto mean = [&](float sum) { return sum * q.per_pixel; };
  __syncthreads();  // behind the windows
  if (member.groups == 1) {
    sum_pixels<T>(windowed, s.windowed_pitch, pixels, s.channels, [&](const Total& total) {
      if (total.copy == 0) store(means + total.row, mean(total.value));
    });
    return;
  }
  sum_pixels<T>(windowed, s.windowed_pitch, pixels, s.channels, [&](const Total& total) {
    const int channel = member.number * s.channels + total.row;
    const auto to = parts + (member.group * q.slice + by_slice.rest(channel));
    if (q.alone) return tell_all(to, total, place);
    if (total.copy == 0) store(peer(to, by_slice.of(channel)), total.value);
  });
  sync_cluster();
  const int first = q.alone ? 0 : place.rank * q.slice;
  const int own = most(least(q.slice, member.size * s.channels - first), 0);  // behind all channels are none
  add_parts(parts, member.groups, q.slice, own, means, mean);
#pragma unroll 1
  for (int i = own + thread_index(); i < q.slice; i += kNetworkThreads) store(means + i, 0.0f);
}

template <class T>
__device__ __forceinline__ void scale_pixels(SharedPtr<T> pixels, int pitch, int count, int channels,
                                             SharedPtr<const float> scale) {
  const int eights = channels / 8;
  const Quotient by_eights(eights);
#pragma unroll 1
  for (int i = thread_index(); i < count * eights; i += kNetworkThreads) {
    const int c = by_eights.rest(i) * 8;
    const SharedPtr<T> at = pixels + (by_eights.of(i) * pitch + c);
    float values[8], factors[8];
    load<Eight<T>>(at).unpack(values);
    load_floats(factors, scale + c);
#pragma unroll
    for (int k = 0; k < 8; ++k) values[k] *= factors[k];
    store(at, Eight<T>::packed(values));
  }
}

// Scales this block's channels, of which `pixels` lie in shared memory. Hidden units are sums of what each block makes of
// the means of its slice, and its scales go to those who have the channels.
template <class T>
__device__ __forceinline__ void excite(const Stage& s, Stream<T>& stream, const Place& place, SharedPtr<T> windowed,
                                       int pixels) {
  const Squeeze& q = s.squeeze;
  const Member member(s, place);
  const auto means = shared_at<float>(q.means), hidden = shared_at<float>(q.hidden), scale = shared_at<float>(q.scale);
  const auto told = shared_at<float>(q.told);
  const auto unit = [&](float sum) { return activate(q.activation, sum); };
  take_means<T>(s, place, windowed, pixels);
#pragma unroll 1
  for (int first = 0; first < q.squeezed; first += q.units) {
    multiply_chunk<T, 8>(stream.next(), least(q.units, q.squeezed - first), q.slice, means, [&](Total total) {
      if (!q.alone) return tell_all(told + (place.rank * q.squeezed + first + total.row), total, place);
      if (total.copy == 0) store(hidden + (first + total.row), unit(total.value));
    });
  }
  if (!q.alone) {
    sync_cluster();
    add_parts(told, place.size, q.squeezed, q.squeezed, hidden, unit);
  }
  const int begin = q.alone ? 0 : place.rank * q.slice;
  const Quotient by_channels(s.channels);
#pragma unroll 1
  for (int first = 0; first < q.slice; first += q.rows) {
    multiply_chunk<T, 8>(stream.next(), least(q.rows, q.slice - first), q.squeezed, hidden, [&](Total total) {
      const int channel = begin + first + total.row, number = by_channels.of(channel);
      if (number >= member.size) return;
      const auto to = scale + by_channels.rest(channel);
      const float value = hardsigmoid(total.value);
      if (q.alone && total.copy == 0) store(to, value);
#pragma unroll 1
      for (int group = total.copy; !q.alone && group < member.groups; group += total.copies) {
        store(peer(to, group * member.size + number), value);
      }
    });
  }
  !q.alone && member.groups > 1 ? sync_cluster() : __syncthreads();
  scale_pixels<T>(windowed, s.windowed_pitch, pixels, s.channels, scale);
}

}  // namespace mbv3fast
