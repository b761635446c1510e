// What the shared library shows to the outside: RegisterCustomOps, which ONNX Runtime calls, and two functions by which
// Python asks what is inside.
#include <cstdio>
#include <string>
#include <vector>

#include "cpu/isa.hpp"
#include "int8_operator.hpp"
#include "operator.hpp"
#include "ort_abi.hpp"

#if defined(_WIN32)
#define SPQ_EXPORT extern "C" __declspec(dllexport)
#else
#define SPQ_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

using namespace spq;

// Registers every operator in one domain, which lives as long as the process: sessions refer to it.
ort::Status* add_domain(const ort::Api* api, ort::SessionOptions* options) {
  static ort::CustomOpDomain* domain = nullptr;
  static ort::Status* failed = [api]() -> ort::Status* {
    keep_for_inference(api);
    if (ort::Status* status = ort::call<ort::CreateCustomOpDomain>(api, kDomain, &domain)) return status;
    std::vector<const ort::CustomOp*> operators;
    add_fp8(operators);
    add_int8(operators);
    add_int8_gather(operators);
    for (const ort::CustomOp* op : operators) {
      if (ort::Status* status = ort::call<ort::CustomOpDomain_Add>(api, domain, op)) return status;
    }
    return nullptr;
  }();
  if (failed != nullptr) return ort::call<ort::CreateStatus>(api, ort::kFail, "spq: the operators cannot be registered");
  return ort::call<ort::AddCustomOpDomain>(api, options, domain);
}

}  // namespace

SPQ_EXPORT ort::Status* RegisterCustomOps(ort::SessionOptions* options, const ort::ApiBase* base) {
  const ort::Api* api = base->GetApi(ort::kApiVersion);
  if (api == nullptr) {
    // Without a table no status can be made: the loader's own message about a missing version is on standard error.
    std::fprintf(stderr, "spq: ONNX Runtime %s is older than 1.%u, which this operator library needs\n",
                 base->GetVersionString(), static_cast<unsigned>(ort::kApiVersion));
    return nullptr;
  }
  return add_domain(api, options);
}

SPQ_EXPORT const char* SpqGraphVersion() { return SPQ_VERSION; }

// JSON: the instruction sets of this machine, the one in use, and whether CUDA kernels were compiled in.
SPQ_EXPORT const char* SpqGraphInfo() {
  static const std::string text = [] {
    std::string out = "{\"version\": \"" SPQ_VERSION "\", \"operator_version\": " + std::to_string(kOperatorVersion);
    out += ", \"isa\": \"" + std::string(cpu::best().name) + "\", \"available\": [";
    for (const char* const* name = cpu::available(); *name != nullptr; ++name) {
      out += (name == cpu::available() ? "\"" : ", \"") + std::string(*name) + "\"";
    }
    out += std::string("], \"cuda\": ") + cuda_info() + "}";
    return out;
  }();
  return text.c_str();
}
