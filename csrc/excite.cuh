// Squeeze-excite (Hu et al. 2018, section 3): x * hardsigmoid(fc2(activation(fc1(mean of x)))).
//
// Its time goes into two matrices, 0.9 MB at 960 channels, so blocks share them: each has a slice of fc1's rows, which
// are hidden units, and one of fc2's, which are channels. A slice is one piece of memory, whatever its width, so it is
// copied 16 bytes at a time, and sets out before the launch before has ended. In a cluster (sm_90) blocks write what
// they computed into each other's shared memory: behind the barrier that follows all have all of it, and nobody reads
// from afar. Sums are in float32 and in a fixed order.
#pragma once

#include "launch.cuh"
#include "tensor.cuh"

namespace mbv3fast {

constexpr int kExciteThreads = 256;

// Where things lie in shared memory, in bytes. Floats, but for the matrices and x.
struct ExciteLayout {
  int means;               // [images of the block, channels]
  int hidden;              // [images of the block, squeezed]
  int parts;               // of sums, [.., channels]
  int fc1_bias, fc2_bias;  // of the slices
  int fc1, fc2;            // [staged rows, columns]
  int x, gathered, scale;  // of the whole: [pixels of the slice, channels], [cluster, rows of the slice], [channels]
};

template <class T>
struct Excite {
  GlobalPtr<const float> pool;      // [images, tiles, channels]
  GlobalPtr<const T> fc1_weight;    // [squeezed, channels]
  GlobalPtr<const float> fc1_bias;  // [squeezed]
  GlobalPtr<const T> fc2_weight;    // [channels, squeezed]
  GlobalPtr<const float> fc2_bias;  // [channels]
  GlobalPtr<float> hidden;          // [images, squeezed], between two launches
  GlobalPtr<float> scale;           // [images, channels]
  std::int64_t images;
  int tiles, channels, squeezed;
  int parts;  // into which a sum over tiles is cut
  float per_pixel;
  Activation activation;
  int slices;                     // blocks that share the matrices: a cluster, or as many as a launch has for images
  int units, rows;                // of a slice of fc1, of fc2
  int staged_units, staged_rows;  // of them in shared memory at once
  ExciteLayout at;
};

template <class N>
__device__ __forceinline__ SharedPtr<N> shared_at(int offset) {
  return view<N>(shared_memory() + offset);
}

__device__ __forceinline__ void add(float4& sum, const float4& other) {
  sum.x += other.x, sum.y += other.y, sum.z += other.z, sum.w += other.w;
}

// Rows begin.. to end of a matrix [.., columns], and their biases; `staged` of them are in `memory` at a time.
template <class T>
struct Slice {
  GlobalPtr<const T> matrix;
  GlobalPtr<const float> bias;
  int columns, begin, end, staged;
  SharedPtr<T> memory;
  SharedPtr<float> offsets;  // the biases

  // Rows from `first` on set out; columns, or else first and end, are multiples of 8.
  __device__ __forceinline__ void fetch(int first) const {
    const std::int64_t from = std::int64_t{first} * columns;
    const int eights = (least(end, first + staged) - first) * columns / 8;
    for (int i = thread_index(); i < eights; i += kExciteThreads) copy_async(memory + 8 * i, matrix + (from + 8 * i));
    commit_copies();
  }

  __device__ __forceinline__ void fetch() const {
    fetch(begin);
#pragma unroll 1
    for (int i = begin + thread_index(); i < end; i += kExciteThreads) {
      store(offsets + (i - begin), load<float>(bias + i));
    }
  }
};

template <class T>
__device__ __forceinline__ Slice<T> fc1_slice(const Excite<T>& p, int slice) {
  const int begin = least(slice * p.units, p.squeezed), end = least(begin + p.units, p.squeezed);
  return {p.fc1_weight, p.fc1_bias, p.channels, begin, end, p.staged_units, shared_at<T>(p.at.fc1),
          shared_at<float>(p.at.fc1_bias)};
}

template <class T>
__device__ __forceinline__ Slice<T> fc2_slice(const Excite<T>& p, int slice) {
  const int begin = least(slice * p.rows, p.channels), end = least(begin + p.rows, p.channels);
  return {p.fc2_weight, p.fc2_bias, p.squeezed, begin, end, p.staged_rows, shared_at<T>(p.at.fc2),
          shared_at<float>(p.at.fc2_bias)};
}

template <class T, int V>
__device__ __forceinline__ void load_numbers(float (&values)[V], SharedPtr<const T> from) {
  if constexpr (V == 8) {
    load<Eight<T>>(from).unpack(values);
  } else if constexpr (V == 2) {
    const float2 pair = unpack<T>(load<std::uint32_t>(from));
    values[0] = pair.x, values[1] = pair.y;
  } else {
    values[0] = to_float(load<T>(from));
  }
}

// Sums of N values each over groups of Lanes lanes: a lane gets N / Lanes of the totals, the i-th being of value
// lane * N / Lanes + i; where N is less, it gets one, as do the others of its Lanes / N.
template <int Lanes, int N>
__device__ __forceinline__ void reduce(float* values) {
  constexpr int mask = Lanes / 2, kept = N / 2;
  if constexpr (Lanes > 1 && N > 1) {
    const bool upper = lane_index() & mask;
#pragma unroll
    for (int i = 0; i < kept; ++i) {
      const float given = shuffle_xor(upper ? values[i] : values[i + kept], mask);
      values[i] = (upper ? values[i + kept] : values[i]) + given;
    }
    reduce<mask, kept>(values);
  } else if constexpr (Lanes > 1) {
    values[0] += shuffle_xor(values[0], mask);
    reduce<mask, 1>(values);
  }
}

// A total, and which of the `copies` lanes that have it this one is.
struct Total {
  int row, image;
  float value;
  int copy, copies;
};

// The products of `count` rows with the vectors [Images, columns]: use(Total). Lanes lanes take Rows rows at once, and
// V elements of them at a time, which divides the columns.
template <int V, int Lanes, int Rows, int Images, class T, class Use>
__device__ __forceinline__ void multiply_rows(SharedPtr<const T> matrix, int columns, int count,
                                              SharedPtr<const float> vectors, Use use) {
  constexpr int kSums = Rows * Images, kRowsOfWarp = 32 / Lanes * Rows;
  constexpr int kLeft = kSums > Lanes ? kSums / Lanes : 1, kCopies = kSums < Lanes ? Lanes / kSums : 1;
  const int warp = thread_index() / 32, lane = lane_index() % Lanes;
  for (int start = warp * kRowsOfWarp; start < count; start += kExciteThreads / 32 * kRowsOfWarp) {
    const int first = start + lane_index() / Lanes * Rows;
    float sums[kSums] = {};
    for (int k = lane * V; k < columns; k += Lanes * V) {
      float factors[Rows][V];
#pragma unroll
      for (int r = 0; r < Rows; ++r) load_numbers<T>(factors[r], matrix + (least(first + r, count - 1) * columns + k));
#pragma unroll
      for (int image = 0; image < Images; ++image) {
        float values[V];
        load_floats(values, vectors + (image * columns + k));
#pragma unroll
        for (int r = 0; r < Rows; ++r) {
#pragma unroll
          for (int v = 0; v < V; ++v) {
            sums[r * Images + image] = fmaf(factors[r][v], values[v], sums[r * Images + image]);
          }
        }
      }
    }
    reduce<Lanes, kSums>(sums);
#pragma unroll
    for (int i = 0; i < kLeft; ++i) {
      const int which = lane / kCopies * kLeft + i, row = first + which / Images;
      if (row < count) use(Total{row, which % Images, sums[i], lane % kCopies, kCopies});
    }
  }
}

// Of all rows of a slice, + bias; the first that are staged are there.
template <int V, int Lanes, int Rows, int Images, class T, class Use>
__device__ __forceinline__ void multiply_slice(const Slice<T>& slice, SharedPtr<const float> vectors, Use use) {
  for (int first = slice.begin; first < slice.end; first += slice.staged) {
    if (first > slice.begin) {
      __syncthreads();
      slice.fetch(first);
      wait_for_copies<0>();
      __syncthreads();
    }
    const int count = least(slice.end - first, slice.staged);
    multiply_rows<V, Lanes, Rows, Images, T>(slice.memory, slice.columns, count, vectors, [&](Total total) {
      total.row += first;
      total.value += load<float>(slice.offsets + (total.row - slice.begin));
      use(total);
    });
  }
}

// use(Total) for the slice's hidden units of the means in shared memory.
template <int Rows, int Images, class T, class Use>
__device__ __forceinline__ void squeeze(const Excite<T>& p, const Slice<T>& fc1, Use use) {
  multiply_slice<8, 32, Rows, Images>(fc1, shared_at<float>(p.at.means), [&](Total total) {
    total.value = activate(p.activation, total.value);
    use(total);
  });
}

// use(Total) for the scale of the slice's channels, of the hidden units in shared memory.
template <int Rows, int Images, class T, class Use>
__device__ __forceinline__ void excite(const Excite<T>& p, const Slice<T>& fc2, Use use) {
  const auto hidden = shared_at<float>(p.at.hidden);
  const auto finish = [&](Total total) {
    total.value = hardsigmoid(total.value);
    use(total);
  };
  if (p.squeezed % 8 == 0) {
    multiply_slice<8, 8, Rows, Images>(fc2, hidden, finish);
  } else if (p.squeezed % 2 == 0) {
    multiply_slice<2, 8, Rows, Images>(fc2, hidden, finish);
  } else {
    multiply_slice<1, 8, Rows, Images>(fc2, hidden, finish);
  }
}

// Into the shared memory of all blocks of a cluster, by the lanes that have it.
__device__ __forceinline__ void give_all(SharedPtr<float> to, const Total& total, int cluster) {
  for (int rank = total.copy; rank < cluster; rank += total.copies) store(peer(to, rank), total.value);
}

// Four sums over `count` rows, `pitch` floats from one to the next.
__device__ __forceinline__ float4 sum_rows(SharedPtr<const float> rows, int count, int pitch) {
  float4 sum = load<float4>(rows);
#pragma unroll 4
  for (int row = 1; row < count; ++row) add(sum, load<float4>(rows + row * pitch));
  return sum;
}

__device__ __forceinline__ void store_mean(SharedPtr<float> to, const float4& sum, float per_pixel) {
  store(to, float4{sum.x * per_pixel, sum.y * per_pixel, sum.z * per_pixel, sum.w * per_pixel});
}

}  // namespace mbv3fast
