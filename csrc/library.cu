// What the library says of itself and of errors.
#include "launch.cuh"

namespace mbv3fast {

Said& last_said() {
  thread_local Said said;
  return said;
}

}  // namespace mbv3fast

int mbv3fast_version(void) { return MBV3FAST_VERSION; }

const char* mbv3fast_error(int code) {
  if (code != 0 && code == mbv3fast::last_said().code) return mbv3fast::last_said().words.c_str();
#ifdef MBV3FAST_EMULATED
  return code == 0 ? "no error" : "unknown error";
#else
  return cudaGetErrorString(static_cast<cudaError_t>(code));
#endif
}

int mbv3fast_emulated(void) {
#ifdef MBV3FAST_EMULATED
  return 1;
#else
  return 0;
#endif
}

const char* mbv3fast_architectures(void) {
#ifdef MBV3FAST_EMULATED
  return "";
#else
  return MBV3FAST_ARCHITECTURES;  // CMakeLists.txt says which
#endif
}

const char* mbv3fast_sources(void) { return MBV3FAST_SOURCES; }

void mbv3fast_emulate([[maybe_unused]] int capability, [[maybe_unused]] uint64_t seed) {
#ifdef MBV3FAST_EMULATED
  mbv3fast::emulation::chip().capability = capability;
  mbv3fast::emulation::chip().seed = seed;
#endif
}
