// What a CUDA build asks of libtorch, for tensors on the CPU; and the card's switches, for Python's ctypes. Bound
// before libtorch's own by -Bsymbolic.
#include <cuda_runtime.h>
#include <cxxabi.h>
#include <dlfcn.h>
#include <torch/csrc/stable/c/shim.h>

#include <cstdio>
#include <cstdlib>

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace emulation {
Runtime& runtime() {
  static Runtime r;
  return r;
}
}  // namespace emulation

// Kernels of CUDA tensors are registered for the device that EXPLAINFIX_EMULATED_KEY names.
EXPORTED AOTITorchError aoti_torch_library_init_impl(const char* ns, const char* key, const char* file, uint32_t line,
                                                     TorchLibraryHandle* library) {
  const auto real =
      reinterpret_cast<decltype(&aoti_torch_library_init_impl)>(dlsym(RTLD_NEXT, "aoti_torch_library_init_impl"));
  const char* instead = getenv("EXPLAINFIX_EMULATED_KEY");
  return real(ns, instead ? instead : key, file, line, library);
}

EXPORTED AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  ++emulation::runtime().guards;
  *guard = reinterpret_cast<DeviceGuardHandle>(&emulation::runtime());
  return 0;
}
EXPORTED AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) {
  --emulation::runtime().guards;
  return 0;
}
EXPORTED AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
EXPORTED AOTITorchError torch_c10_cuda_check_msg(int32_t error, const char* file, const char*, uint32_t line, bool,
                                                 char** message) {
  using namespace emulation;
  const char* text = error == kInvalidValue           ? "invalid argument"
                     : error == kInvalidConfiguration ? "invalid configuration argument"
                     : error == kInvalidDevice        ? "invalid device ordinal: no device guard stands"
                                                      : "unknown error";
  *message = nullptr;
  if (error && asprintf(message, "CUDA error: %s (emulated), %s:%u", text, file, line) < 0) return 1;
  return 0;
}
EXPORTED void torch_c10_cuda_free_error_msg(char* message) { free(message); }

EXPORTED void emulated_card(int processors, int shared_of_block, int shared_of_processor, int major, int minor) {
  emulation::runtime().card = {processors, shared_of_block, shared_of_processor, major, minor};
  emulation::runtime().allowed.clear();
}

EXPORTED void emulated_seed(unsigned seed) { emulation::engine().random.seed(seed); }

static std::string name_of(const void* kernel) {
  Dl_info info;
  if (!dladdr(kernel, &info) || !info.dli_sname) return "?";
  char* clear = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, nullptr);
  const std::string name = clear ? clear : info.dli_sname;
  free(clear);
  return name;
}

// The launches since the last call, one a line: blocks, threads, bytes of shared memory, and the kernel.
EXPORTED const char* emulated_launches() {
  static std::string text;
  text.clear();
  for (const emulation::Launch& l : emulation::runtime().launches) {
    for (unsigned size : {l.grid.x, l.grid.y, l.grid.z, l.block.x, l.block.y, l.block.z}) {
      text += std::to_string(size) + " ";
    }
    text += std::to_string(l.shared_bytes) + " " + name_of(l.kernel) + "\n";
  }
  emulation::runtime().launches.clear();
  return text.c_str();
}
