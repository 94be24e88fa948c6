// The late stages: every block has the whole image and its own slice of the expanded channels. What it projects are parts
// of sums over all channels: each block adds up those of its own pixels, and hands the result to all.
#pragma once

#include "network_block.cuh"
#include "network_squeeze.cuh"

namespace mbv3fast {

// Parts of the sums over all channels, of this block's: to the blocks whose pixels they are.
template <class T, class Prepare>
__device__ __forceinline__ void give_parts(const Stage& s, const Place& place, SharedPtr<std::uint8_t> chunk, int first,
                                           int outputs, Prepare prepare) {
  const auto sums = shared_at<float>(s.sums);
  project<T>(windowed_pixels<T>(s), s.windowed_pitch, s.out.height * s.out.width, view<const T>(chunk),
             pitch_of(s.channels), outputs, s.channels, prepare, [&](int pixel, int output, float2 sum) {
               const int to = (place.rank * s.pixels + pixel % s.pixels) * s.out.channels + first + output;
               store(peer(sums + to, pixel / s.pixels), sum);
             });
}

// Adds up this block's pixels, and hands them to all.
template <class T>
__device__ __forceinline__ void add_up(const Stage& s, const Place& place, SharedPtr<const float> bias) {
  const auto sums = shared_at<float>(s.sums);
  const Local<T> in(s.in, 0), out(s.out, 0);
  const int begin = place.rank * s.pixels, count = least(s.pixels, s.out.height * s.out.width - begin);
  const int fours = s.out.channels / 4;
  for (int i = thread_index(); i < count * fours; i += kNetworkThreads) {
    const int pixel = i / fours, c = i % fours * 4;
    float4 sum = load<float4>(bias + c);
    for (int rank = 0; rank < place.size; ++rank) {
      add(sum, load<float4>(sums + ((rank * s.pixels + pixel) * s.out.channels + c)));
    }
    if (s.adds_input) {
      const auto residual = in.memory + ((begin + pixel) * in.pitch + c);
      const float2 low = unpack<T>(load<std::uint32_t>(residual)), high = unpack<T>(load<std::uint32_t>(residual + 2));
      add(sum, float4{low.x, low.y, high.x, high.y});
    }
    const auto to = out.memory + ((begin + pixel) * out.pitch + c);
    const std::uint32_t low = pack<T>(sum.x, sum.y), high = pack<T>(sum.z, sum.w);
    for (int rank = 0; rank < place.size; ++rank) {
      store(peer(to, rank), low), store(peer(to + 2, rank), high);
    }
  }
}

template <class T>
__device__ __forceinline__ void run_channels(const Stage& s, Stream<T>& stream, const Place& place) {
  const Band all(s, 0, s.out.height);
  const Local<T> in(s.in, 0);
  clear_rows<T>(s, 0, all.count);
  for (int step = 0; step * s.step < s.channels; ++step) {
    const StepWeights<T> weights(s, stream.acquire());
    expand<T>(s, all, in, weights, step * s.step);
    __syncthreads();
    depthwise<T>(s, all, weights, windowed_pixels<T>(s) + step * s.step);
    stream.release();
  }
  const bool excites = s.squeeze.squeezed > 0;
  if (excites) excite<T>(s, stream, place, windowed_pixels<T>(s), s.out.height * s.out.width);
  for (int first = 0; first < s.out.channels; first += s.projected) {
    const int outputs = least(s.projected, s.out.channels - first);
    const SharedPtr<std::uint8_t> chunk = stream.acquire();
    if (excites) {
      give_parts<T>(s, place, chunk, first, outputs, Scaled<T>{shared_at<float>(s.squeeze.scale)});
    } else {
      give_parts<T>(s, place, chunk, first, outputs, AsItIs{});
    }
    stream.release();
  }
  sync_cluster();
  add_up<T>(s, place, view<const float>(stream.acquire()));
  sync_cluster();
  stream.release();
}

}  // namespace mbv3fast
