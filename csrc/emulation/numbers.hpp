// float16 and bfloat16, rounded as a GPU rounds them: to nearest, ties to even.
#pragma once

#include <cstdint>
#include <cstring>

namespace mbv3fast {

struct float16 {
  std::uint16_t bits;
};

struct bfloat16 {
  std::uint16_t bits;
};

namespace emulation {

inline std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace emulation

inline float to_float(bfloat16 value) { return emulation::float_of(std::uint32_t{value.bits} << 16); }

inline float to_float(float16 value) {
  const std::uint32_t sign = (value.bits & 0x8000u) << 16, magnitude = value.bits & 0x7FFFu;
  if (magnitude >= 0x7C00u) return emulation::float_of(sign | 0x7F800000u | (magnitude & 0x3FFu) << 13);
  // As a float its exponent is 112 too small, subnormals too: a product puts that right, exactly.
  return emulation::float_of(sign | emulation::bits_of(emulation::float_of(magnitude << 13) * 0x1p112f));
}

template <class T>
T round_to(float value);

template <>
inline bfloat16 round_to<bfloat16>(float value) {
  const std::uint32_t bits = emulation::bits_of(value);
  if (value != value) return {0x7FFF};
  return {static_cast<std::uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16)};
}

template <>
inline float16 round_to<float16>(float value) {
  const std::uint32_t bits = emulation::bits_of(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
  if (value != value) return {0x7FFF};
  if (magnitude >= 0x477FF000u) return {static_cast<std::uint16_t>(sign | 0x7C00u)};  // 65520 and more: infinity
  if (magnitude < 0x38800000u) {  // a subnormal: adding 0.5 leaves its multiple of 2^-24 in the lowest bits, rounded
    return {static_cast<std::uint16_t>(sign | (emulation::bits_of(emulation::float_of(magnitude) + 0.5f) - 0x3F000000u))};
  }
  return {static_cast<std::uint16_t>(sign | (magnitude - 0x38000000u + 0xFFFu + (magnitude >> 13 & 1)) >> 13)};
}

// The larger and the smaller, NaN if `a` is.
inline float max_nan(float a, float b) { return a < b ? b : a; }
inline float min_nan(float a, float b) { return a > b ? b : a; }

// Two in a register, the first in its lower half.
template <class T>
std::uint32_t pack(float low, float high) {
  return round_to<T>(low).bits | std::uint32_t{round_to<T>(high).bits} << 16;
}

template <class T>
T half_of(std::uint32_t pair, int which) {
  return T{static_cast<std::uint16_t>(pair >> 16 * which)};
}

}  // namespace mbv3fast
