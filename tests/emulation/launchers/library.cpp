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

static std::string demangled(const char* name) {
  char* clear = abi::__cxa_demangle(name, nullptr, nullptr, nullptr);
  const std::string text = clear ? clear : name;
  free(clear);
  return text;
}

static std::string name_of(const void* kernel) {
  Dl_info info;
  return dladdr(kernel, &info) && info.dli_sname ? demangled(info.dli_sname) : "?";
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

// The types of a function's parameters, as far as they matter to who passes them: all pointers are alike. `function`
// ends with them, in parentheses.
static std::string parameters_of(const std::string& function) {
  std::string types, type;
  int depth = 0;
  size_t begin = function.size() - 1;
  for (int open = 1; open;) open += (function[--begin] == ')') - (function[begin] == '(');
  for (size_t at = begin + 1; at < function.size(); ++at) {
    const char c = function[at];
    depth += (c == '<') - (c == '>');
    if (depth || (c != ',' && at + 1 < function.size())) {
      type += c;
      continue;
    }
    types += (type.back() == '*' ? "*" : type) + ",";
    type.clear();
    if (c == ',') ++at;  // and a space
  }
  return types;
}

static const void* kernel_named(const char* name) {
  Dl_info info;
  dladdr(reinterpret_cast<const void*>(&kernel_named), &info);
  static void* self = dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  return dlsym(self, name);
}

// For a binary of nvcc's: lets a kernel, by its mangled name, have that much dynamic shared memory.
EXPORTED int emulated_allow(const char* name, int shared_bytes) {
  using namespace emulation;
  const std::lock_guard<std::recursive_mutex> guard(runtime().busy);
  if (shared_bytes > runtime().card.shared_of_block) return kInvalidValue;
  runtime().allowed[kernel_named(name)] = size_t(shared_bytes);
  return kSuccess;
}

// How to call a kernel of that mangled name, or nullptr.
static emulation::Invoke invoke_of(const char* name) {
  const std::string wanted = parameters_of(demangled(name));
  for (const auto& [type, invoke] : emulation::runtime().invokes) {
    if (parameters_of(demangled(type.c_str())) == wanted) return invoke;
  }
  return nullptr;
}

EXPORTED int emulated_knows(const char* name) { return kernel_named(name) && invoke_of(name); }

// Launches the kernel of that mangled name with arguments as cudaLaunchKernel has them. An error is a cudaError_t.
EXPORTED int emulated_launch(const char* name, const unsigned* sizes, void** arguments, size_t shared_bytes) {
  using namespace emulation;
  const std::lock_guard<std::recursive_mutex> guard(runtime().busy);
  const Launch l{kernel_named(name), {sizes[0], sizes[1], sizes[2]}, {sizes[3], sizes[4], sizes[5]}, shared_bytes};
  try {
    const Invoke invoke = invoke_of(name);
    if (!l.kernel || !invoke) fail("no kernel " + demangled(name));
    return runtime().run(l, invoke, arguments);
  } catch (const std::exception& error) {
    fprintf(stderr, "%s\n", error.what());
    return kLaunchFailure;
  }
}
