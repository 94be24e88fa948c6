// A function that can pause, and go on where it was.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>
#include <functional>
#include <memory>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace mbv3fast::emulation {

class Fiber {
 public:
  // The next `resume` begins `body`, which must not throw.
  void start(std::function<void()> body) {
    body_ = std::move(body);
    begun_ = false;
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_.get();
    context_.uc_stack.ss_size = kStack;
    context_.uc_link = nullptr;
    makecontext(&context_, &Fiber::begin, 0);
  }

  // Runs it until it pauses or ends.
  void resume() {
    Fiber* before = current;
    current = this;
    switching(&caller_fake_stack_, stack_.get(), kStack);
    if (_setjmp(caller_) == 0) {
      if (begun_) _longjmp(paused_, 1);
      begun_ = true;
      setcontext(&context_);
    }
    switched(caller_fake_stack_, nullptr, nullptr);
    current = before;
  }

  // From within: back to who resumed it.
  static void pause() {
    Fiber& fiber = *current;
    void* fake_stack = nullptr;
    switching(&fake_stack, fiber.caller_stack_, fiber.caller_stack_size_);
    if (_setjmp(fiber.paused_) == 0) _longjmp(fiber.caller_, 1);
    switched(fake_stack, &fiber.caller_stack_, &fiber.caller_stack_size_);
  }

 private:
  static constexpr std::size_t kStack = 256 * 1024;
  inline static thread_local Fiber* current = nullptr;

  static void begin() {
    Fiber& fiber = *current;
    switched(nullptr, &fiber.caller_stack_, &fiber.caller_stack_size_);
    fiber.body_();
    switching(nullptr, fiber.caller_stack_, fiber.caller_stack_size_);
    _longjmp(fiber.caller_, 1);
  }

  // AddressSanitizer must know whose stack it looks at.
  static void switching([[maybe_unused]] void** save, [[maybe_unused]] const void* bottom,
                        [[maybe_unused]] std::size_t size) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(save, bottom, size);
#endif
  }
  static void switched([[maybe_unused]] void* saved, [[maybe_unused]] const void** bottom,
                       [[maybe_unused]] std::size_t* size) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(saved, bottom, size);
#endif
  }

  std::function<void()> body_;
  std::unique_ptr<char[]> stack_{new char[kStack]};
  ucontext_t context_ = {};  // for the first turn; jumps, for the others, need no system call
  jmp_buf paused_, caller_;
  bool begun_ = false;
  void* caller_fake_stack_ = nullptr;
  const void* caller_stack_ = nullptr;
  std::size_t caller_stack_size_ = 0;
};

}  // namespace mbv3fast::emulation
