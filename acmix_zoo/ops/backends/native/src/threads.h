// Work shared between threads, and memory that is used again.
//
// The threads are those of PyTorch's own OpenMP library, through a function pointer, so that `torch.set_num_threads`
// counts and no second pool competes for the cores. Tasks are handed out one by one. What a task computes does not depend
// on the thread that runs it, so results are the same for any number of threads.
//
// A buffer that cannot be allocated must not end the process. There are no exceptions in this library, and they could
// not leave a task of OpenMP. Therefore
//
//     Buffer          notes the failure for the call, and its `data` is null
//     its owner       returns at once if `data` is null, and what it should have computed is undefined
//     `try_to`        makes the call return OUT_OF_MEMORY in the end, and library.py raises an exception
#pragma once

#include <cstdlib>

#include "layer.h"

namespace {

enum Status : int64_t { OK = 0, OUT_OF_MEMORY = 1 };

// The status of the call that this thread is working for.
thread_local Status* status = nullptr;

// Calls `work` and returns whether it had the memory that it needed.
template <class Work>
Status try_to(const Work& work) {
  Status found = OK;
  status = &found;
  work();
  status = nullptr;
  return found;
}

// Calls body(task) for task = 0 … tasks − 1. `l`: a Layer or a WindowLayer.
template <class L, class Body>
void share(const L& l, int64_t tasks, const Body& body) {
  struct Shared {
    const Body* body;
    int64_t next, tasks;
    Status* status;
  } shared{&body, 0, tasks, status};
  auto run = [](void* pointer) {
    Shared& s = *(Shared*)pointer;
    status = s.status;
    for (;;) {
      const int64_t task = __atomic_fetch_add(&s.next, 1, __ATOMIC_RELAXED);
      if (task >= s.tasks) return;
      (*s.body)(task);
    }
  };
  const int64_t threads = min(l.threads, tasks);
  if (threads > 1 && l.parallel)
    l.parallel(run, &shared, (unsigned)threads, 0);
  else
    run(&shared);
}

#ifndef ALLOCATE
#define ALLOCATE aligned_alloc  // a test replaces it by one that fails
#endif

// Buffers that stay allocated between calls, because fresh pages cost more than the arithmetic done in them. A thread
// takes one that is large enough or makes it; at most SLOTS are kept.
struct Slot {
  void* memory;
  size_t bytes;
  int taken;
};
constexpr int SLOTS = 64;
constexpr size_t LARGEST_KEPT = 64u << 20;
Slot slots[SLOTS];

template <class T>
INLINE int64_t floats_of(int64_t count) {
  return (count * (int64_t)sizeof(T) + (int64_t)sizeof(float) - 1) / (int64_t)sizeof(float);
}

class Buffer {
 public:
  explicit Buffer(int64_t floats) {
    const size_t bytes = ((size_t)max(floats, 1) * sizeof(float) + 4095) / 4096 * 4096;
    slot_ = take(bytes);
    if (!slot_) slot_ = take(0);  // none is large enough: enlarge any
    if (slot_ && slot_->bytes < bytes) {
      free(slot_->memory);
      slot_->memory = ALLOCATE(4096, bytes);
      slot_->bytes = slot_->memory ? bytes : 0;
    }
    own_ = slot_ ? nullptr : ALLOCATE(4096, bytes);
    data = (float*)(slot_ ? slot_->memory : own_);
    if (!data) __atomic_store_n(status, OUT_OF_MEMORY, __ATOMIC_RELAXED);
  }
  ~Buffer() {
    free(own_);
    if (!slot_) return;
    if (slot_->bytes > LARGEST_KEPT) {
      free(slot_->memory);
      slot_->memory = nullptr;
      slot_->bytes = 0;
    }
    __atomic_store_n(&slot_->taken, 0, __ATOMIC_RELEASE);
  }
  Buffer(const Buffer&) = delete;
  float* data;  // null: out of memory

 private:
  static Slot* take(size_t bytes) {
    for (Slot& slot : slots) {
      int expected = 0;
      if (!__atomic_compare_exchange_n(&slot.taken, &expected, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) continue;
      if (slot.bytes >= bytes) return &slot;
      __atomic_store_n(&slot.taken, 0, __ATOMIC_RELEASE);
    }
    return nullptr;
  }

  Slot* slot_ = nullptr;
  void* own_ = nullptr;
};

}  // namespace
