// Threads of ONNX Runtime's own pool, so its settings hold for us too.
#pragma once

#include "../ort_abi.hpp"

namespace spq {

struct Pool {
  const ort::Api* api;
  const ort::KernelContext* context;
  ort::Status* failed;
};

inline void run_in_pool(void* self, size_t count, void (*task)(void*, size_t), void* user) {
  Pool& pool = *static_cast<Pool*>(self);
  if (pool.failed != nullptr) return;
  pool.failed = ort::call<ort::KernelContext_ParallelFor>(pool.api, pool.context, task, count, size_t{0}, user);
}

}  // namespace spq
