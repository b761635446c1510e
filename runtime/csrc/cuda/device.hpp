// A CUDA device as the kernels' host side needs it: what it can do, memory on its streams, and errors.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace spq::cuda {

struct Lt;
struct LtContext;

// Ends up in a status of ONNX Runtime; it never leaves this library.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw Error(std::string(what) + ": " + cudaGetErrorString(error));
}

struct Device {
  int architecture;     // 90 for compute capability 9.0
  int multiprocessors;
  cudaMemPool_t pool;
  const Lt* lt;         // nullptr where there is no cuBLASLt that can start here
  LtContext* context;
};

// The calling thread's device, which ONNX Runtime sets. What is found out about it is kept for good.
const Device& current_device();

// Working memory that is taken and given back in the order of a stream, so neither waits and two calls at once, on a
// stream each, have their own. The pool keeps up to kKept bytes between calls, where giving them back would cost more
// than the product itself.
class Buffer {
 public:
  static constexpr uint64_t kKept = uint64_t{256} << 20;

  Buffer() = default;
  Buffer(const Device& device, cudaStream_t stream, int64_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept { *this = static_cast<Buffer&&>(other); }
  Buffer& operator=(Buffer&& other) noexcept;

  template <typename T = void>
  T* get() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  cudaStream_t stream_ = nullptr;
};

}  // namespace spq::cuda
