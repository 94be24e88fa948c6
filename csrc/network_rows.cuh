// The early stages: a block has rows of the image, with all their channels, and the rows beside them that its windows
// reach. Weights are the same for all blocks; what a block hands on are its rows, to whose windows reach them, or to all.
#pragma once

#include "network_block.cuh"
#include "network_squeeze.cuh"

namespace mbv3fast {

// Rows `begin` to `end` of the map that they lie in to the blocks that want them; behind a barrier of the block.
template <class T>
__device__ __forceinline__ void publish(const Map& map, int begin, int end, const Place& place) {
  const Local<T> own(map, place.rank);
  const int eights = map.channels / 8;
  for (int rank = 0; rank < place.size; ++rank) {
    if (rank == place.rank) continue;
    const Local<T> other(map, rank);
    const int wanted = map.rows ? rank * map.rows + map.rows + map.below : map.height;
    const int first = begin > other.first ? begin : other.first, last = end < wanted ? end : wanted;
    if (map.rows && rank * map.rows >= map.height) continue;  // it has none
    for (int i = thread_index(); i < (last - first) * map.width * eights; i += kNetworkThreads) {
      const int at = i / eights * map.pitch + i % eights * 8;
      store(peer(other.row(first) + at, rank), load<uint4>(own.row(first) + at));
    }
  }
}

// Projects rows `begin` to `end`, by a chunk of weights for outputs from `first` on, into the output.
template <class T, class Prepare>
__device__ __forceinline__ void project_rows(const Stage& s, const Place& place, SharedPtr<const T> windowed, int begin,
                                             int end, SharedPtr<std::uint8_t> chunk, int first, int outputs,
                                             Prepare prepare) {
  const int pitch = pitch_of(s.channels), padded = round_up(outputs, 16);
  const auto bias = view<const float>(chunk + padded * pitch * 2);
  const Local<T> in(s.in, place.rank), out(s.out, place.rank);
  const SharedPtr<T> to = out.row(begin) + first;
  const SharedPtr<const T> residual = in.row(begin) + first;
  const int pixels = (end - begin) * s.out.width;
  project<T>(windowed, s.windowed_pitch, pixels, view<const T>(chunk), pitch, outputs, s.channels, prepare,
             [&](int pixel, int output, float2 sum) {
               const float2 offset = load<float2>(bias + output);
               float2 value = {sum.x + offset.x, sum.y + offset.y};
               if (s.adds_input) {
                 const float2 added = unpack<T>(load<std::uint32_t>(residual + (pixel * in.pitch + output)));
                 value.x += added.x, value.y += added.y;
               }
               store(to + (pixel * out.pitch + output), pack<T>(value.x, value.y));
             });
}

template <class T>
__device__ __forceinline__ void run_rows(const Stage& s, Stream<T>& stream, const Place& place) {
  const int begin = least(place.rank * s.rows, s.out.height), end = least(begin + s.rows, s.out.height);
  const Local<T> in(s.in, place.rank);
  const bool excites = s.squeeze.squeezed > 0, projects = s.bound && !excites;  // band by band
  const SharedPtr<T> windowed = windowed_pixels<T>(s);
  clear_rows<T>(s, 0, (s.band - 1) * s.stride + s.kernel);
  SharedPtr<std::uint8_t> chunk;
  if (s.bound) chunk = stream.acquire();
  __syncthreads();
  int row = begin;
  do {
    const Band band(s, row, least(row + s.band, end));
    const SharedPtr<T> to = windowed + (projects ? 0 : (row - begin) * s.out.width * s.windowed_pitch);
    if (row > begin) clear_rows<T>(s, band.bottom - band.first, band.count);  // below the image, where others were
    for (int step = 0; step * s.step < s.channels; ++step) {
      if (!s.bound) chunk = stream.acquire();
      const StepWeights<T> weights(s, chunk, s.bound ? step : 0);
      expand<T>(s, band, in, weights, step * s.step);
      __syncthreads();
      depthwise<T>(s, band, weights, to + step * s.step);
      s.bound ? __syncthreads() : stream.release();
    }
    if (projects && row < end) {
      const SharedPtr<std::uint8_t> behind = chunk + s.channels / s.step * StepWeights<T>::size(s);
      project_rows<T>(s, place, to, row, band.end, behind, 0, s.out.channels, AsItIs{});
      __syncthreads();
    }
    row += s.band;
  } while (s.bound && row < end);
  if (s.bound) stream.release();
  if (excites) excite<T>(s, stream, place, windowed, (end - begin) * s.out.width);
  for (int first = 0; !projects && first < s.out.channels; first += s.projected) {
    const int outputs = least(s.projected, s.out.channels - first);
    chunk = stream.acquire();
    if (excites) {
      const Scaled<T> scaled{shared_at<float>(s.squeeze.scale)};
      project_rows<T>(s, place, windowed, begin, end, chunk, first, outputs, scaled);
    } else {
      project_rows<T>(s, place, windowed, begin, end, chunk, first, outputs, AsItIs{});
    }
    stream.release();
  }
  publish<T>(s.out, begin, end, place);
  sync_cluster();
}

}  // namespace mbv3fast
