/* mbv3fast: the fused kernels of MobileNetV3 as a library that needs neither Python nor torch.
 *
 * Every function launches on `stream` and returns at once: 0, or a code that mbv3fast_error tells. Nothing is launched
 * where arguments are refused. Pointers are to device memory, aligned to 16 bytes; activations are dense, [N, H, W, C] of
 * float16 or bfloat16; biases are float32. Functions may be called from several threads.
 */
#ifndef MBV3FAST_H
#define MBV3FAST_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define MBV3FAST_API __declspec(dllexport)
#else
#define MBV3FAST_API __attribute__((visibility("default")))
#endif

#define MBV3FAST_VERSION 1 /* of this interface; mbv3fast_version() is the library's */

enum { MBV3FAST_FLOAT16 = 1, MBV3FAST_BFLOAT16 = 2 };                               /* dtype */
enum { MBV3FAST_NONE = 0, MBV3FAST_RELU = 1, MBV3FAST_HARDSWISH = 2 };              /* activation */
enum { MBV3FAST_REFUSED = 10001, MBV3FAST_FAULT = 10002 };                          /* beside CUDA's own codes */

/* y = activation(depthwise convolution of x + bias), and the sums of y over tiles of pixels.
 *
 * out_height and out_width follow from the padding at the bottom and on the right, which is not named: all that lies
 * outside of x is zero. A block computes tile_height x tile_width pixels of 8 * groups channels.
 */
typedef struct {
  const void* x;      /* [images, height, width, channels] */
  const void* weight; /* [kernel, kernel, channels] */
  const float* bias;  /* [channels] */
  void* out;          /* [images, out_height, out_width, channels] */
  float* pool;        /* [images, tiles, channels], or null: tiles are row by row */
  int64_t images;
  int32_t height, width, out_height, out_width;
  int32_t channels; /* a multiple of 8 */
  int32_t kernel;   /* 3 or 5 */
  int32_t stride;   /* 1 or 2 */
  int32_t top, left; /* padding */
  int32_t dtype, activation;
  int32_t tile_height, tile_width; /* tile_width: a multiple of 4 */
  int32_t groups;                  /* tile_height * tile_width / 4 * groups: a multiple of 32, at most 512 */
  int32_t overlapped;              /* programmatic dependent launch: may start while its predecessor drains (sm_90) */
} mbv3fast_depthwise_conv_args;

MBV3FAST_API int mbv3fast_depthwise_conv(const mbv3fast_depthwise_conv_args* args, void* stream);

/* An inverted residual (Sandler et al. 2018): expand, depthwise, project + residual, or, where squeeze-excite comes between
 * the latter two, expand and depthwise, with the sums that it needs.
 *
 *     e = activation(x expand_weight^T + expand_bias)         or x, where expand_weight is null
 *     d = activation(depthwise convolution of e + bias)
 *     out = d project_weight^T + project_bias + residual      or d, where project_weight is null; pool are its sums then
 *
 * Tiles of pixels and channels of a step are among those that are compiled, inverted_residual_tiles.inc.
 */
typedef struct {
  const void* x;              /* [images, height, width, inputs] */
  const void* expand_weight;  /* [channels, inputs], or null */
  const float* expand_bias;   /* [channels] */
  const void* weight;         /* [kernel, kernel, channels] */
  const float* bias;          /* [channels] */
  const void* project_weight; /* [outputs, channels], or null */
  const float* project_bias;  /* [outputs] */
  const void* residual;       /* like out, or null; for x itself null, and adds_input */
  void* out;                  /* [images, out_height, out_width, outputs], or channels where nothing is projected */
  float* pool;                /* [images, tiles, channels] where nothing is projected: tiles are row by row */
  int64_t images;
  int32_t height, width, out_height, out_width;
  int32_t inputs, channels, outputs; /* multiples of 8 */
  int32_t kernel, stride;
  int32_t top, left; /* padding */
  int32_t dtype, activation;
  int32_t tile_height, tile_width;
  int32_t step;   /* channels that a block expands at once */
  int32_t splits; /* blocks among which the channels are split; 1 where they are projected */
  int32_t adds_input; /* whether x is the residual, which is then read once */
  int32_t overlapped;
} mbv3fast_inverted_residual_args;

MBV3FAST_API int mbv3fast_inverted_residual(const mbv3fast_inverted_residual_args* args, void* stream);

/* out = activation((x * scale) weight^T + bias) + residual, a 1x1 convolution; the scale is squeeze-excite's.
 *
 * A block computes tile_rows pixels and tile_outputs of the outputs: 16, 16; 16, 48; 32, 32; 64, 48; 64, 80; 128, 48;
 * 128, 80.
 */
typedef struct {
  const void* x;        /* [images, pixels, inputs] */
  const float* scale;   /* [images, inputs], or null */
  const void* weight;   /* [outputs, inputs] */
  const float* bias;    /* [outputs] */
  const void* residual; /* like out, or null */
  void* out;            /* [images, pixels, outputs] */
  int64_t images;
  int32_t pixels;          /* of an image */
  int32_t inputs, outputs; /* multiples of 8 */
  int32_t dtype, activation;
  int32_t tile_rows, tile_outputs;
  int32_t overlapped;
} mbv3fast_pointwise_conv_args;

MBV3FAST_API int mbv3fast_pointwise_conv(const mbv3fast_pointwise_conv_args* args, void* stream);

/* What squeeze-excite (Hu et al. 2018) multiplies by, from the sums of tiles:
 *
 *     mean = sum of pool over tiles / pixels
 *     scale = hardsigmoid(activation(mean fc1_weight^T + fc1_bias) fc2_weight^T + fc2_bias)
 *
 * The two matrices are cut into slices, one a block. With `cluster` blocks that hand each other hidden units (sm_90) it
 * is one launch; else with `hidden` two; else one block does all. The result has the same bits either way.
 */
typedef struct {
  const float* pool;      /* [images, tiles, channels] */
  const void* fc1_weight; /* [squeezed, channels] */
  const float* fc1_bias;  /* [squeezed] */
  const void* fc2_weight; /* [channels, squeezed] */
  const float* fc2_bias;  /* [channels] */
  float* hidden;          /* [images, squeezed], scratch where cluster is 1, or null; else not used */
  float* scale;           /* [images, channels] */
  int64_t images;
  int32_t tiles, pixels;
  int32_t channels; /* a multiple of 8 */
  int32_t squeezed;
  int32_t dtype, activation;  /* of the weights; after fc1 */
  int32_t cluster;            /* 1, 2, 4, 8, or, where the chip has such clusters, 16 */
  int32_t images_per_cluster; /* 1 or 8, which read the weights once */
  int32_t overlapped;
} mbv3fast_excite_args;

MBV3FAST_API int mbv3fast_excite(const mbv3fast_excite_args* args, void* stream);

/* The whole of squeeze-excite: out = x * scale, with the mean of x over its pixels.
 *
 * One launch where a cluster's shared memory has room for an image, which is read once. Else, or where cluster is 1,
 * sums, excite and product one after another, with the scratch `pool`, `scale` and, as excite uses it, `hidden`;
 * mbv3fast_squeeze_excite_tiles tells which. images_per_cluster is of excite.
 */
typedef struct {
  const void* x;          /* [images, pixels, channels] */
  const void* fc1_weight; /* [squeezed, channels] */
  const float* fc1_bias;  /* [squeezed] */
  const void* fc2_weight; /* [channels, squeezed] */
  const float* fc2_bias;  /* [channels] */
  void* out;              /* like x, which it may be */
  float* pool;            /* [images, tiles, channels], scratch, or null where tiles is 0 */
  float* hidden;          /* [images, squeezed], scratch, or null */
  float* scale;           /* [images, channels], scratch, or null where tiles is 0 */
  int64_t images;
  int32_t pixels;
  int32_t channels; /* a multiple of 8 */
  int32_t squeezed;
  int32_t dtype, activation;
  int32_t cluster, images_per_cluster;
  int32_t overlapped;
} mbv3fast_squeeze_excite_args;

MBV3FAST_API int mbv3fast_squeeze_excite(const mbv3fast_squeeze_excite_args* args, void* stream);

/* How many tiles `pool` has in that call on the current device: 0 where it is one launch, without scratch. Of args it
 * reads the sizes, dtype and cluster.
 */
MBV3FAST_API int mbv3fast_squeeze_excite_tiles(const mbv3fast_squeeze_excite_args* args, int32_t* tiles);

/* The whole network in one launch: images to logits, by clusters of blocks that hold an image's activations in their shared
 * memory; refused below compute capability 9.0. The tables of stages and of chunks of weights say what is computed, and are
 * mbv3fast/cluster's.
 */
typedef struct {
  const void* x;       /* [images, channels, height, width], in any layout: so many elements along its axes */
  const float* factor; /* [channels], of bytes, which become byte * factor - shift; or null */
  const float* shift;  /* [channels] */
  const void* weights; /* the chunks */
  const void* stages;  /* of csrc/network_stage.cuh */
  const void* chunks;
  void* out;           /* [images, outputs] */
  int64_t* stamps;     /* [clusters * cluster, stage_count + 1], or null: by the clock of its multiprocessor, when a block
                          began each stage of its last image, and when it had ended */
  int64_t images;
  int64_t along_images, along_channels, along_rows, along_columns; /* of x */
  int64_t weight_bytes;
  int32_t channels, height, width; /* of x; up to 4 channels */
  int32_t outputs;
  int32_t takes_bytes;             /* whether x is bytes, else of dtype */
  int32_t stage_count, chunk_count;
  int32_t stage_bytes;             /* of one, which tells whether table and kernel are of one version */
  int32_t cluster, clusters;       /* blocks of a cluster, a power of 2 up to 16; clusters at work */
  int32_t slot;                    /* bytes of each of three chunks in shared memory */
  int32_t shared_bytes;            /* of a block */
  int32_t dtype;
  int32_t overlapped;
} mbv3fast_network_args;

MBV3FAST_API int mbv3fast_network(const mbv3fast_network_args* args, void* stream);

/* How many clusters of so many blocks, with so much shared memory each, the current device runs at once; 0 where it has no
 * such clusters.
 */
MBV3FAST_API int mbv3fast_network_clusters(int32_t cluster, int32_t shared_bytes, int32_t dtype, int32_t* clusters);

/* The version of this interface that the library has. */
MBV3FAST_API int mbv3fast_version(void);

/* What a code means; what the calling thread's last call said, where it was refused or, emulated, at fault. */
MBV3FAST_API const char* mbv3fast_error(int code);

/* The GPUs that the library has code for, and PTX that later ones compile when they load it: "80 90 120 90+PTX" is code
 * for compute capability 8.0, 9.0, 12.0, and PTX for 9.0 and later. Empty where emulated.
 */
MBV3FAST_API const char* mbv3fast_architectures(void);

/* A hash of the sources that the library was built of. */
MBV3FAST_API const char* mbv3fast_sources(void);

/* Whether the library runs kernels on the CPU, for tests. It then checks what they do: see docs/emulation.md. */
MBV3FAST_API int mbv3fast_emulated(void);

/* For the calling thread, where emulated: the chip's compute capability (90 is 9.0), and the seed that threads take turns
 * by. Elsewhere it does nothing.
 */
MBV3FAST_API void mbv3fast_emulate(int capability, uint64_t seed);

#ifdef __cplusplus
}
#endif
#endif
