#include "device.hpp"

#include <map>
#include <mutex>
#include <utility>

#include "cublaslt.hpp"

namespace spq::cuda {
namespace {

int attribute(cudaDeviceAttr which, int ordinal) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, ordinal), "cudaDeviceGetAttribute");
  return value;
}

// A pool of our own, so that how much it keeps is nobody else's matter.
cudaMemPool_t create_pool(int ordinal) {
  cudaMemPoolProps properties = {};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location.type = cudaMemLocationTypeDevice;
  properties.location.id = ordinal;
  cudaMemPool_t pool = nullptr;
  check(cudaMemPoolCreate(&pool, &properties), "cudaMemPoolCreate");
  uint64_t kept = Buffer::kKept;
  check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept), "cudaMemPoolSetAttribute");
  return pool;
}

Device examine(int ordinal) {
  Device device = {};
  device.architecture = 10 * attribute(cudaDevAttrComputeCapabilityMajor, ordinal) +
                        attribute(cudaDevAttrComputeCapabilityMinor, ordinal);
  device.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, ordinal);
  device.pool = create_pool(ordinal);
  device.lt = cublaslt();
  if (device.lt != nullptr && device.lt->Create(&device.context) != kLtSuccess) device.lt = nullptr;
  return device;
}

}  // namespace

const Device& current_device() {
  int ordinal = 0;
  check(cudaGetDevice(&ordinal), "cudaGetDevice");
  // Never destroyed: at the end of a process nobody knows whether CUDA is gone already.
  static std::mutex& mutex = *new std::mutex;
  static std::map<int, Device>& devices = *new std::map<int, Device>;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = devices.find(ordinal);
  return found != devices.end() ? found->second : devices.emplace(ordinal, examine(ordinal)).first->second;
}

Buffer::Buffer(const Device& device, cudaStream_t stream, int64_t bytes) : stream_(stream) {
  if (bytes == 0) return;
  const cudaError_t error = cudaMallocFromPoolAsync(&data_, static_cast<size_t>(bytes), device.pool, stream);
  if (error != cudaSuccess) {
    cudaGetLastError();  // it is told here, and must not come up again at somebody else's call
    throw Error("no " + std::to_string(bytes) + " bytes of working memory: " + cudaGetErrorString(error));
  }
}

Buffer::~Buffer() {
  // An error of an earlier kernel would come up here as well; that kernel's own call tells of it.
  if (data_ != nullptr) cudaFreeAsync(data_, stream_);
}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(stream_, other.stream_);
  return *this;
}

}  // namespace spq::cuda
