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

/* The version of this interface that the library has. */
MBV3FAST_API int mbv3fast_version(void);

/* What a code means; what the calling thread's last call said, where it was refused or, emulated, at fault. */
MBV3FAST_API const char* mbv3fast_error(int code);

/* The GPUs that the library has code for, and PTX that later ones compile when they load it: "80 90 120 120+PTX" is code
 * for compute capability 8.0, 9.0, 12.0, and PTX for 12.0 and later. Empty where emulated.
 */
MBV3FAST_API const char* mbv3fast_architectures(void);

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
