// What the lanes of a warp do together, and copies that land later.
#pragma once

namespace mbv3fast {
namespace emulation {

// A matrix of tensor cores, in the lanes' registers: where its elements lie (PTX ISA, "Matrix multiply-accumulate
// operation using mma instruction", fragments of m16n8k8 and m16n8k16 with 16-bit factors).
struct Fragment {
  // Of an element of A [16, k]: its lane is 4 * (row % 8) + column % 8 / 2.
  static int a_lane(int row, int column) { return row % 8 * 4 + column % 8 / 2; }
  static int a_register(int row, int column) { return row / 8 + column / 8 * 2; }
  // Of B [k, 8].
  static int b_lane(int row, int column) { return column * 4 + row % 8 / 2; }
  static int b_register(int row) { return row / 8; }
  // Of C [16, 8], whose registers hold one float each.
  static int c_lane(int row, int column) { return row % 8 * 4 + column / 2; }
  static int c_register(int row, int column) { return row / 8 * 2 + column % 2; }
};

template <class T, int K>
inline constexpr const char* kMma = K == 16 ? (std::is_same_v<T, float16> ? "mma m16n8k16 f16" : "mma m16n8k16 bf16")
                                            : (std::is_same_v<T, float16> ? "mma m16n8k8 f16" : "mma m16n8k8 bf16");

template <int K>
struct Product {
  float (*c)[4];
  const std::uint32_t* a;
  const std::uint32_t* b;
};

// C += A B of a warp: exact products, summed in double, rounded once.
template <class T, int K>
void multiply(void** parts) {
  ++done().products;
  const auto lane = [&](int number) -> Product<K>& { return *static_cast<Product<K>*>(parts[number]); };
  float a[16][K], b[K][8];
  for (int k = 0; k < K; ++k) {
    for (int row = 0; row < 16; ++row) {
      const std::uint32_t pair = lane(Fragment::a_lane(row, k)).a[Fragment::a_register(row, k)];
      a[row][k] = to_float(half_of<T>(pair, k % 2));
    }
    for (int column = 0; column < 8; ++column) {
      const std::uint32_t pair = lane(Fragment::b_lane(k, column)).b[Fragment::b_register(k)];
      b[k][column] = to_float(half_of<T>(pair, k % 2));
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      float& sum = (*lane(Fragment::c_lane(row, column)).c)[Fragment::c_register(row, column)];
      double exact = sum;
      for (int k = 0; k < K; ++k) exact += static_cast<double>(a[row][k]) * b[k][column];
      sum = static_cast<float>(exact);
    }
  }
}

}  // namespace emulation

// mma.sync.m16n8k16 and m16n8k8, row.col, float32 sums.
template <class T>
void mma(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], const char* file = __builtin_FILE(),
         int line = __builtin_LINE()) {
  emulation::Product<16> part{&c, a, b};
  emulation::meet({emulation::kMma<T, 16>, file, line, 0}, &part, emulation::multiply<T, 16>);
}

template <class T>
void mma(float (&c)[4], const std::uint32_t (&a)[2], const std::uint32_t (&b)[1], const char* file = __builtin_FILE(),
         int line = __builtin_LINE()) {
  emulation::Product<8> part{&c, a, b};
  emulation::meet({emulation::kMma<T, 8>, file, line, 0}, &part, emulation::multiply<T, 8>);
}

// ldmatrix of N 8x8 matrices of 16 bits: lane i holds the address of row i % 8 of matrix i / 8, and gets of each matrix
// the two elements at row lane / 4, columns 2 * (lane % 4) and the next.
template <int N, class T>
void ldmatrix(std::uint32_t (&registers)[N], SharedPtr<T> row, const char* file = __builtin_FILE(),
              int line = __builtin_LINE()) {
  struct Part {
    std::uint32_t* registers;
    SharedPtr<T> row;
    emulation::Thread* thread;
  } part{registers, row, &emulation::self()};
  emulation::meet({"ldmatrix x", file, line, N}, &part, [](void** parts) {
    for (int matrix = 0; matrix < N; ++matrix) {
      for (int line = 0; line < 8; ++line) {
        const Part& source = *static_cast<Part*>(parts[matrix * 8 + line]);
        const void* bytes = source.row.block->shared.read(*source.thread, source.row.offset, 16, 16);
        for (int pair = 0; pair < 4; ++pair) {
          const Part& target = *static_cast<Part*>(parts[line * 4 + pair]);
          std::memcpy(&target.registers[matrix], static_cast<const char*>(bytes) + pair * 4, 4);
        }
      }
    }
  });
}

template <class V>
V shuffle_xor(V value, int mask, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (mask < 1 || mask >= emulation::kWarp) emulation::fail("shuffle by " + std::to_string(mask) + ", needs 1 to 31");
  V result;
  struct Part {
    V value;
    V* result;
    int mask;
  } part{value, &result, mask};
  emulation::meet({"shuffle by", file, line, mask}, &part, [](void** parts) {
    for (int lane = 0; lane < emulation::kWarp; ++lane) {
      const Part& mine = *static_cast<Part*>(parts[lane]);
      *mine.result = static_cast<Part*>(parts[lane ^ mine.mask])->value;
    }
  });
  return result;
}

// cp.async of 16 bytes, or of 16 zeros where not `wanted`.
template <class T, class U>
void copy_async(SharedPtr<T> to, GlobalPtr<U> from, bool wanted = true) {
  emulation::Thread& thread = emulation::self();
  const void* source = wanted ? from.template checked<uint4>("read") : nullptr;
  to.block->shared.depart(thread, to.offset, sizeof(uint4));
  thread.copies.back().push_back({to.offset, source, sizeof(uint4)});
  if (wanted) emulation::done().copied += sizeof(uint4);
}

inline void commit_copies() { emulation::self().copies.emplace_back(); }

// Until at most `Left` of the groups committed last are still on their way.
template <int Left>
void wait_for_copies() {
  emulation::Thread& thread = emulation::self();
  while (thread.copies.size() > Left + 1) {
    for (const auto& copy : thread.copies.front()) thread.block->shared.land(thread, copy);
    thread.copies.erase(thread.copies.begin());
  }
}

}  // namespace mbv3fast
