// Threads that share the work of one operation at a time.
#pragma once

#include <cstddef>

namespace bluejay {

// Runs task(context, index) for every index below `count`, the caller among the workers; returns when
// all are done. Which thread takes which index is not fixed: a task must not care.
// Workers wait for the next call a few ten microseconds spinning, then sleeping.
void parallel_for(size_t count, void (*task)(void* context, size_t index), void* context);

template <typename Function>
void parallel_for(size_t count, Function&& function) {
  parallel_for(
      count, [](void* context, size_t index) { (*static_cast<Function*>(context))(index); },
      const_cast<void*>(static_cast<const void*>(&function)));
}

// Threads that take part, the caller included: as many as the process may run on, unless set. Setting
// waits for the operation that runs.
int num_threads();
void set_num_threads(int count);

// A buffer of the calling thread, at least `bytes` long and 64-byte aligned, whose content lasts until
// the same thread asks for the same slot. Grows, and never shrinks; nullptr when memory is out.
enum class Slot { kLeft, kRight, kSpare, kWidened, kProduct, kRounded, kBlock, kPartials, kChoice, kCount };
void* scratch(Slot slot, size_t bytes);

}  // namespace bluejay
