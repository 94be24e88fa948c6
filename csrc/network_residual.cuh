// An inverted residual. The cluster is cut into groups, each of which has rows of the image; its members share the channels
// that are expanded, and what they project are parts of sums, which they add up, each of its own pixels. A group of one
// projects what it needs no one for. What comes out goes to all whose windows reach it.
#pragma once

#include "network_windows.cuh"
#include "network_squeeze.cuh"

namespace mbv3fast {

// Projects pixels from row `begin` on to outputs from `first` on: into the map, or as parts to those whose pixels they are.
template <class T>
__device__ __forceinline__ void project(const Stage& s, const Place& place, SharedPtr<const T> windowed, int begin,
                                        int pixels, SharedPtr<std::uint8_t> chunk, int first, int outputs) {
  const Member member(s, place);
  const Local<T> in(s.in, place.rank), out(s.out, place.rank);
  const bool alone = s.group_bits == 0;
  const int pitch = pitch_of(s.channels);
  const SharedPtr<T> to = out.row(begin) + first;
  const SharedPtr<const T> residual = in.row(begin) + first;
  const auto sums = shared_at<float>(s.sums) + (member.number * s.pixels * s.out.channels + first);
  const Quotient by_pixels(alone ? 1 : s.pixels);
  Factors<T> factors{windowed, s.windowed_pitch, pixels, view<const T>(chunk), pitch, outputs, s.channels};
  if (alone) factors.bias = view<const float>(chunk + outputs * pitch * 2);
  products(s.project_tiles, factors, [&](int pixel, int output, float2 sum) {
    if (!alone) {
      const int owner = member.group * member.size + by_pixels.of(pixel);
      return store(peer(sums + (by_pixels.rest(pixel) * s.out.channels + output), owner), sum);
    }
    if (s.adds_input) {
      const float2 added = unpack<T>(load<std::uint32_t>(residual + (pixel * in.pitch + output)));
      sum.x += added.x, sum.y += added.y;
    }
    store(to + (pixel * out.pitch + output), pack<T>(sum.x, sum.y));
  });
}

// The blocks that are to have a row of a map: one behind another.
class Holders {
 public:
  __device__ __forceinline__ Holders(const Map& map, const Place& place)
      : by_rows_(map.rows ? map.rows : 1), last_(map.rows ? by_rows_.of(map.height - 1) : 0), map_(map), place_(place) {}

  // Stores `value`, of channels from `c` on, to all of them, this block being one, or to all others.
  template <class T, class V>
  __device__ __forceinline__ void give(int y, int x, int c, const V& value, bool itself) const {
    int begin = 0, end = place_.size;
    if (map_.rows) {
      begin = by_rows_.of(most(y - map_.below, 0)) << map_.group_bits;
      end = (least(by_rows_.of(y + map_.above), last_) + 1) << map_.group_bits;
    }
#pragma unroll 1
    for (int k = itself ? 0 : 1; k < end - begin; ++k) {  // each block begins with another, and not all with the first
      const int rank = place_.rank + k < end ? place_.rank + k : place_.rank + k - (end - begin);
      const Local<T> map(map_, rank);
      store(peer(map.row(y) + (x * map.pitch + c), rank), value);
    }
  }

 private:
  Quotient by_rows_;
  int last_;  // group that has rows
  const Map& map_;
  const Place& place_;
};

// Rows `begin` to `end` of the map that they lie in, behind a barrier of the block.
template <class T>
__device__ __forceinline__ void publish(const Map& map, int begin, int end, const Place& place) {
  const Holders holders(map, place);
  const Local<T> own(map, place.rank);
  const int eights = map.channels / 8;
  const Quotient by_eights(eights), by_width(map.width);
#pragma unroll 1
  for (int i = thread_index(); i < (end - begin) * map.width * eights; i += kNetworkThreads) {
    const int pixel = by_eights.of(i), c = by_eights.rest(i) * 8;
    const uint4 eight = load<uint4>(own.row(begin) + (pixel * map.pitch + c));
    holders.give<T>(begin + by_width.of(pixel), by_width.rest(pixel), c, eight, false);
  }
}

// Adds up this block's of the pixels that begin at row `begin`.
template <class T>
__device__ __forceinline__ void add_up(const Stage& s, const Place& place, SharedPtr<const float> bias, int begin,
                                       int pixels) {
  const Member member(s, place);
  const Holders holders(s.out, place);
  const auto sums = shared_at<float>(s.sums);
  const int own = member.number * s.pixels, count = least(s.pixels, pixels - own), fours = s.out.channels / 4;
  const SharedPtr<const T> residual = Local<T>(s.in, place.rank).row(begin);
  const Quotient by_fours(fours), by_width(s.out.width);
#pragma unroll 1
  for (int i = thread_index(); i < count * fours; i += kNetworkThreads) {
    const int pixel = by_fours.of(i), c = by_fours.rest(i) * 4;
    float4 sum = load<float4>(bias + c);
#pragma unroll 2
    for (int number = 0; number < member.size; ++number) {
      add(sum, load<float4>(sums + ((number * s.pixels + pixel) * s.out.channels + c)));
    }
    if (s.adds_input) {
      const auto at = residual + ((own + pixel) * s.in.pitch + c);
      const float2 low = unpack<T>(load<std::uint32_t>(at)), high = unpack<T>(load<std::uint32_t>(at + 2));
      add(sum, float4{low.x, low.y, high.x, high.y});
    }
    const uint2 four = {pack<T>(sum.x, sum.y), pack<T>(sum.z, sum.w)};
    holders.give<T>(begin + by_width.of(own + pixel), by_width.rest(own + pixel), c, four, true);
  }
}

// The means of channels from `first` on of this block's slice, which are in the tile, to all blocks.
template <class T>
__device__ __forceinline__ void tell_means(const Stage& s, const Place& place, int first) {
  const int begin = place.rank * s.channels + first;
  const auto means = shared_at<float>(s.squeeze.means) + begin;
  sum_pixels<T>(expanded_tile<T>(s), s.expanded_pitch, s.in.height * s.in.width, s.step, [&](Total total) {
    total.value *= s.squeeze.per_pixel;
    if (begin + total.row < s.outputs) tell_all(means + total.row, total, place);
  });
}

// A block of the network, or its last convolution, which is like one that ends with the means of what it expands.
template <class T>
__device__ __forceinline__ void run_block(const Stage& s, Stream<T>& stream, const Place& place) {
  const int begin = least((place.rank >> s.group_bits) * s.rows, s.out.height), end = least(begin + s.rows, s.out.height);
  const Local<T> in(s.in, place.rank);
  const bool excites = s.squeeze.squeezed > 0;
  const bool projects_bands = s.bound && !excites;  // else all windows come first
  const SharedPtr<T> windowed = windowed_pixels<T>(s);
  clear_border<T>(s, (s.band - 1) * s.stride + s.kernel);
  SharedPtr<std::uint8_t> chunk;
  if (s.bound) chunk = stream.next();
  int past = begin;
  do {  // a band, also where a group has no rows, since chunks of weights are for all
    const int row = past;
    past = least(row + s.band, end);
    const Band band(s, row, past);
    const SharedPtr<T> to = windowed + (projects_bands ? 0 : (row - begin) * s.out.width * s.windowed_pitch);
    clear_rows<T>(s, 0, band.top - band.first), clear_rows<T>(s, band.bottom - band.first, band.count);
#pragma unroll 1
    for (int step = 0; step * s.step < s.channels; ++step) {
      if (!s.bound) chunk = stream.next();
      const StepWeights<T> weights(s, chunk, s.bound ? step : 0);
      expand<T>(s, band, in, weights, step * s.step);
      __syncthreads();
      if (s.kind == StageKind::mean) {
        tell_means<T>(s, place, step * s.step);
        continue;
      }
      depthwise<T>(s, band, weights, to + step * s.step);
      if (s.bound) __syncthreads();
    }
    if (s.kind == StageKind::mean) return sync_cluster();
    if (past < end && !projects_bands) continue;
    if (excites) excite<T>(s, stream, place, windowed, (end - begin) * s.out.width);
    const int from = projects_bands ? row : begin, pixels = (past - from) * s.out.width;
#pragma unroll 1
    for (int first = 0; first < s.out.channels; first += s.projected) {
      const SharedPtr<std::uint8_t> behind = chunk + s.channels / s.step * StepWeights<T>::size(s);
      const SharedPtr<std::uint8_t> matrix = projects_bands ? behind : stream.next();
      project<T>(s, place, windowed, from, pixels, matrix, first, least(s.projected, s.out.channels - first));
    }
  } while (past < end);
  if (s.group_bits == 0) {
    __syncthreads();
    publish<T>(s.out, begin, end, place);
  } else {
    sync_cluster();
    add_up<T>(s, place, view<const float>(stream.next()), begin, (end - begin) * s.out.width);
  }
  sync_cluster();
}

}  // namespace mbv3fast
