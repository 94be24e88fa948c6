// The table that the network's kernel walks: what a cluster of blocks does, one stage after another, and where in shared
// memory. mbv3fast/cluster/ makes it; ctypes has the same structs (mbv3fast/cluster/table.py).
#pragma once

#include "launch.cuh"
#include "tensor.cuh"

namespace mbv3fast {

constexpr int kNetworkThreads = 256, kNetworkWarps = kNetworkThreads / 32;

enum class StageKind : std::int32_t { stem = 0, block = 1, mean = 2, linear = 3 };

// What a warp computes at once of a product of matrices: tiles of 16 by 16, one, or two beside or below each other, or four.
enum class Tiling : std::int32_t { one = 0, beside = 1, below = 2, four = 3 };

// A feature map, `pitch` elements from pixel to pixel, `at` so many bytes. Every block has the whole of it where `rows` is
// 0; else the g-th group of 2^group_bits blocks has the rows from g * rows on, so many, and those `above` and `below` that
// its windows reach.
struct Map {
  std::int32_t at, pitch, height, width, channels, rows, above, below, group_bits;
};

// Squeeze-excite: float32 vectors by their places in bytes. A block has the means of a `slice` of all channels, and makes
// their scales; where the layers are small each does so of all channels, alone.
struct Squeeze {
  std::int32_t squeezed;  // hidden units; 0: there is none
  Activation activation;
  std::int32_t alone;
  std::int32_t slice;
  std::int32_t units, rows;  // of the first layer and of the second in a chunk
  std::int32_t parts;        // [groups, slice]: sums over the rows of each group of blocks
  std::int32_t told;         // [blocks, squeezed]: what each makes of its slice, where that isn't all
  std::int32_t means, hidden, scale;  // [slice], [squeezed], [channels]
  float per_pixel;
};

struct alignas(16) Stage {
  StageKind kind;
  std::int32_t group_bits;  // 2^group_bits blocks of a group have the same rows of the output, and slices of the channels
  std::int32_t rows;        // of a group
  Map in, out;
  std::int32_t kernel, stride, top, left;
  Activation expand_activation, activation;
  std::int32_t expands, adds_input;
  std::int32_t channels;  // of a block, in eights
  std::int32_t step;      // of them at once, in sixteens
  std::int32_t band;      // rows of the output at once
  std::int32_t bound;     // whether all bands use one chunk of weights; it is that of the projection too, if no
                          // squeeze-excite comes between
  std::int32_t projected; // outputs of a chunk of the projection, where it has its own
  Tiling expand_tiles, project_tiles;
  std::int32_t expanded, expanded_pitch, expanded_width;  // [rows of a band's windows, width with its padding, step]
  std::int32_t windowed, windowed_pitch;                  // [pixels, channels]
  std::int32_t sums, pixels;      // where blocks share channels: [blocks of a group, pixels of each, outputs] float32
  std::int32_t inputs, outputs;   // of a linear layer
  std::int32_t chunks;            // of weights, of a linear layer
  Squeeze squeeze;
};

// A part of the weights, a multiple of 16 bytes, in `copies` copies, a power of 2, one behind another: block r takes copy
// r % copies.
struct alignas(16) Chunk {
  std::int64_t offset;
  std::int32_t bytes, copies;
};

template <class T>
struct Network {
  GlobalPtr<const std::uint8_t> weights;  // as the kernel reads them, one chunk behind another
  GlobalPtr<const std::uint8_t> stages;   // the table
  GlobalPtr<const Chunk> chunks;
  GlobalPtr<const T> x;                   // [images, channels, height, width], `along` its axes so many elements; or
  GlobalPtr<const std::uint8_t> bytes;    // the same in bytes, which become byte * factor - shift
  GlobalPtr<const float> factor, shift;   // [channels]
  GlobalPtr<T> out;                       // [images, outputs]
  GlobalPtr<std::int64_t> stamps;         // [blocks, stages + 1], or null: when each began its last image's stages
  std::int64_t along[4];
  std::int32_t images, stage_count, chunk_count, cluster, clusters;
  std::int32_t slot, table;               // shared memory begins with three chunks of `slot` bytes; where stages lie there
};

}  // namespace mbv3fast
