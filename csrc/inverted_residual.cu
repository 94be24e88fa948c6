// mbv3fast_inverted_residual: its arguments, the tiles that are compiled, and the choice among them.
#include "inverted_residual.cuh"

namespace mbv3fast {
namespace {

using Args = mbv3fast_inverted_residual_args;

void check(const Args& a) {
  const bool expands = a.expand_weight != nullptr, projects = a.project_weight != nullptr;
  need_pointer(a.x, "x");
  need_pointer(a.weight, "weight");
  need_pointer(a.bias, "bias");
  need_pointer(a.out, "out");
  if (expands) need_pointer(a.expand_weight, "expand_weight"), need_pointer(a.expand_bias, "expand_bias");
  if (projects) need_pointer(a.project_weight, "project_weight"), need_pointer(a.project_bias, "project_bias");
  if (!projects) need_pointer(a.pool, "pool");
  if (a.residual != nullptr) need_pointer(a.residual, "residual");
  if (a.residual != nullptr && !projects) throw Refused{"residual: needs a projection that it is added to"};
  need_channels("inputs", a.inputs);
  need(a.inputs <= 1 << 16, "inputs", a.inputs, "no more than 2^16");
  need_channels("channels", a.channels);
  need(expands || a.inputs == a.channels, "inputs", a.inputs, "as many as channels, as nothing is expanded");
  if (projects) need_channels("outputs", a.outputs);
  need_area("height, width", a.height, a.width);
  need_area("out_height, out_width", a.out_height, a.out_width);
  const std::int64_t in = std::int64_t{a.height} * a.width, out = std::int64_t{a.out_height} * a.out_width;
  const int widest = a.channels > a.inputs ? a.channels : a.inputs;
  need_images(a.images, (in > out ? in : out) * (projects && a.outputs > widest ? a.outputs : widest));
  need(a.kernel == 3 || a.kernel == 5, "kernel", a.kernel, "3 or 5");
  need(a.stride == 1 || a.stride == 2, "stride", a.stride, "1 or 2");
  need_activation(a.activation);
  need(a.top >= 0 && a.top < a.kernel, "top", a.top, "less than the kernel");
  need(a.left >= 0 && a.left < a.kernel, "left", a.left, "less than the kernel");
  need_dtype(a.dtype);
  const bool alike = a.stride == 1 && a.inputs == a.outputs && a.height == a.out_height && a.width == a.out_width;
  need(!a.adds_input || (projects && alike && a.residual == nullptr), "adds_input", a.adds_input,
       "an output like x, and no other residual");
  need(!a.adds_input || expands || a.channels <= a.step, "adds_input", a.adds_input, "one step where nothing is expanded");
  need(a.splits > 0 && a.splits <= a.channels && (!projects || a.splits == 1), "splits", a.splits,
       "1 or more, up to the channels, 1 where a projection adds up");
}

template <class C>
int run(const Args& a, void* stream) {
  using T = typename C::T;
  InvertedResidual<T> p;
  const std::int64_t pixels = a.images * a.height * a.width, out_pixels = a.images * a.out_height * a.out_width;
  p.tiles_x = ceil_div(a.out_width, C::kTileWidth), p.tiles_y = ceil_div(a.out_height, C::kTileHeight);
  const std::int64_t tiles = std::int64_t{p.tiles_x} * p.tiles_y, channels = a.channels;
  const int out_channels = C::kOutputs ? a.outputs : a.channels;
  p.x = activations(static_cast<const T*>(a.x), pixels * a.inputs);
  p.expand_weight = weights(static_cast<const T*>(a.expand_weight), C::kExpands ? channels * a.inputs : 0);
  p.expand_bias = weights(a.expand_bias, C::kExpands ? channels : 0);
  p.weight = weights(static_cast<const T*>(a.weight), C::kKernel * C::kKernel * channels);
  p.bias = weights(a.bias, channels);
  p.project_weight = weights(static_cast<const T*>(a.project_weight), C::kOutputs ? a.outputs * channels : 0);
  p.project_bias = weights(a.project_bias, C::kOutputs ? a.outputs : 0);
  p.residual = activations(static_cast<const T*>(a.residual), a.residual ? out_pixels * a.outputs : 0);
  p.out = activations(static_cast<T*>(a.out), out_pixels * out_channels);
  p.pool = activations(a.pool, C::kOutputs ? 0 : a.images * tiles * channels);
  p.height = a.height, p.width = a.width, p.out_height = a.out_height, p.out_width = a.out_width;
  p.inputs = a.inputs, p.channels = a.channels, p.outputs = a.outputs, p.top = a.top, p.left = a.left;
  p.splits = a.splits, p.adds_input = a.adds_input != 0;
  Launch how;
  how.blocks = a.images * tiles * a.splits;
  if (how.blocks == 0) return 0;
  need_blocks(how.blocks);
  how.threads = C::kThreads;
  how.shared_bytes = Layout<C>(a.inputs).size;
  need_shared("inputs", a.inputs, how.shared_bytes, current_device());
  how.overlapped = a.overlapped != 0;
  how.stream = stream;
  return launch<inverted_residual_kernel<C>>("inverted_residual", how, p);
}

constexpr Activation kRelu = Activation::relu, kHardswish = Activation::hardswish;

// What the networks' tables need, each for many images and for few. kernel, stride, activation, tile, strip of a thread,
// channels of a step, outputs (0: not projected), whether x is expanded.
template <class T>
int choose(const Args& a, void* stream) {
#define TILE(kernel_, stride_, act, tile_h, tile_w, strip_h, strip_w, step_, outputs_, expands)                        \
  if (a.kernel == kernel_ && a.stride == stride_ && a.activation == static_cast<int>(act) && a.tile_height == tile_h && \
      a.tile_width == tile_w && a.step == step_ && (a.expand_weight != nullptr) == expands &&                           \
      (a.project_weight != nullptr) == (outputs_ > 0) && a.outputs <= (outputs_ > 0 ? outputs_ : a.outputs)) {          \
    return run<Traits<T, kernel_, stride_, act, tile_h, tile_w, strip_h, strip_w, step_, outputs_, expands>>(a, stream); \
  }
#include "inverted_residual_tiles.inc"
#undef TILE
  throw Refused{"kernel, stride, activation, tile_height, tile_width, step, outputs: no such tile is compiled"};
}

}  // namespace
}  // namespace mbv3fast

int mbv3fast_inverted_residual(const mbv3fast_inverted_residual_args* args, void* stream) {
  using namespace mbv3fast;
  return guarded("inverted_residual", [&] {
    if (args == nullptr) throw Refused{"args: got null"};
    check(*args);
    return args->dtype == MBV3FAST_FLOAT16 ? choose<float16>(*args, stream) : choose<bfloat16>(*args, stream);
  });
}
