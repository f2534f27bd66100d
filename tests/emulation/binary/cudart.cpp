// A CUDA runtime with one card that is not there, to be loaded before the real one (LD_PRELOAD): device memory is the
// host's, and starts as NaN; streams and events do nothing, for every call is done when it returns. Kernels of
// explainfix_ext are handed to the function that `fake_kernels` sets, by their mangled name; any other kernel is an
// error that names it. EXPLAINFIX_CARD is the card: multiprocessors, shared memory of a block and of a multiprocessor,
// compute capability, as five numbers with commas between them.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>

#include "card.h"

namespace {

using Launch = int (*)(const char* kernel, const unsigned* grid_and_block, void** arguments, size_t shared_bytes);
using Allow = int (*)(const char* kernel, int shared_bytes);

struct World {
  std::recursive_mutex busy;
  emulation::Card card;
  std::unordered_map<const void*, std::string> names;  // of kernels, by the function that stands for them on the host
  std::map<char*, size_t> blocks;                      // of device memory
  std::string foreign;                                 // the last kernel that nobody can run
  Launch launch = nullptr;
  Allow allow = nullptr;
  World() {
    const char* text = getenv("EXPLAINFIX_CARD");
    if (text && sscanf(text, "%d,%d,%d,%d,%d", &card.processors, &card.shared_of_block, &card.shared_of_processor,
                       &card.major, &card.minor) != 5) {
      fprintf(stderr, "EXPLAINFIX_CARD must be five numbers, got %s\n", text);
      abort();
    }
  }
};

World& world() {
  static World* w = new World;  // never freed: destructors of other libraries call CUDA
  return *w;
}

struct Config {
  dim3 grid, block;
  size_t shared_bytes;
  cudaStream_t stream;
};
thread_local Config pushed;  // by <<<>>>, for the function that it calls next
thread_local cudaError_t last = cudaSuccess;

cudaError_t result(int error) {
  if (error) last = cudaError_t(error);
  return cudaError_t(error);
}

// The name of a kernel of ours, or nullptr.
const char* ours(const void* kernel) {
  const auto found = world().names.find(kernel);
  const std::string name = found == world().names.end() ? "of no name" : found->second;
  if (name.find("explainfix") != std::string::npos) return found->second.c_str();
  world().foreign = name;
  return nullptr;
}

cudaError_t launch(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t shared_bytes) {
  const std::lock_guard<std::recursive_mutex> guard(world().busy);
  const char* name = ours(kernel);
  if (!name || !world().launch) return result(cudaErrorNoKernelImageForDevice);
  const unsigned sizes[6] = {grid.x, grid.y, grid.z, block.x, block.y, block.z};
  return result(world().launch(name, sizes, arguments, shared_bytes));
}

template <class Handle>
cudaError_t make(Handle* handle) {
  *handle = reinterpret_cast<Handle>(new int);
  return cudaSuccess;
}

int primary_context_state(int, unsigned* flags, int* active) {
  *flags = 0;
  *active = 1;
  return 0;
}
int no_function() { return 0; }

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

void fake_kernels(Launch launch, Allow allow) {
  world().launch = launch;
  world().allow = allow;
}
// The mangled names of all kernels of explainfix_ext, one a line.
const char* fake_names() {
  static std::string text;
  text.clear();
  for (const auto& [host, name] : world().names) {
    if (name.find("explainfix") != std::string::npos) text += name + "\n";
  }
  return text.c_str();
}

// What nvcc's host code calls.
void** __cudaRegisterFatBinary(void*) { return reinterpret_cast<void**>(new void*); }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  const std::lock_guard<std::recursive_mutex> guard(world().busy);
  world().names[host] = name;
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, struct CUstream_st* stream) {
  pushed = {grid, block, shared_bytes, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes, void* stream) {
  *grid = pushed.grid;
  *block = pushed.block;
  *shared_bytes = pushed.shared_bytes;
  *static_cast<cudaStream_t*>(stream) = pushed.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(host));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                               cudaStream_t) {
  return launch(reinterpret_cast<const void*>(kernel), grid, block, arguments, shared_bytes);
}
cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                             cudaStream_t) {
  return launch(kernel, grid, block, arguments, shared_bytes);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* kernel, void** arguments) {
  return launch(kernel, c->gridDim, c->blockDim, arguments, c->dynamicSmemBytes);
}
cudaError_t cudaFuncSetAttribute(const void* kernel, enum cudaFuncAttribute attribute, int value) {
  const std::lock_guard<std::recursive_mutex> guard(world().busy);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  const char* name = ours(kernel);
  return name && world().allow ? result(world().allow(name, value)) : cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes* a, const void*) {
  *a = {};
  a->maxThreadsPerBlock = 1024;
  a->numRegs = 32;
  a->binaryVersion = a->ptxVersion = world().card.major * 10;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t, unsigned) {
  *blocks = 2;
  return cudaSuccess;
}

// The card.
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return result(device == 0 ? cudaSuccess : cudaErrorInvalidDevice); }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 0;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total) {
  *free_bytes = *total = size_t(8) << 30;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp* p, int) {
  *p = {};
  const emulation::Card& card = world().card;
  strcpy(p->name, "a card that is not there");
  p->totalGlobalMem = size_t(8) << 30;
  p->sharedMemPerBlock = emulation::kSharedUnasked;
  p->sharedMemPerBlockOptin = size_t(card.shared_of_block);
  p->sharedMemPerMultiprocessor = size_t(card.shared_of_processor);
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->warpSize = 32;
  p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxBlocksPerMultiProcessor = 32;
  p->maxGridSize[0] = 0x7fffffff;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->major = card.major;
  p->minor = card.minor;
  p->multiProcessorCount = card.processors;
  p->textureAlignment = 512;
  p->l2CacheSize = 50 << 20;
  p->unifiedAddressing = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, enum cudaDeviceAttr which, int) {
  const emulation::Card& card = world().card;
  switch (which) {
    case cudaDevAttrMultiProcessorCount:
      *value = card.processors;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = card.shared_of_block;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = card.shared_of_processor;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = card.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = card.minor;
      break;
    default:
      *value = 0;
  }
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* id, int room, int) {
  snprintf(id, size_t(room), "0000:00:00.0");
  return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned, unsigned long long,
                                             enum cudaDriverEntryPointQueryResult* status) {
  const bool state = strcmp(symbol, "cuDevicePrimaryCtxGetState") == 0;
  *function = state ? reinterpret_cast<void*>(&primary_context_state) : reinterpret_cast<void*>(&no_function);
  if (status) *status = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

// Memory.
cudaError_t cudaMalloc(void** p, size_t bytes) {
  *p = aligned_alloc(512, (bytes + 511) / 512 * 512);
  if (!*p) return result(cudaErrorMemoryAllocation);
  memset(*p, 0xff, bytes);  // NaN in every type
  const std::lock_guard<std::recursive_mutex> guard(world().busy);
  world().blocks[static_cast<char*>(*p)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFree(void* p) {
  const std::lock_guard<std::recursive_mutex> guard(world().busy);
  world().blocks.erase(static_cast<char*>(p));
  free(p);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned) {
  *p = aligned_alloc(512, (bytes + 511) / 512 * 512);
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* p) {
  free(p);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, enum cudaMemcpyKind, cudaStream_t) {
  memmove(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, enum cudaMemcpyKind kind) {
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}
cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) {
  memset(p, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemset(void* p, int value, size_t bytes) { return cudaMemsetAsync(p, value, bytes, nullptr); }
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes* a, const void* p) {
  *a = {};
  const std::lock_guard<std::recursive_mutex> guard(world().busy);
  char* at = static_cast<char*>(const_cast<void*>(p));
  const auto after = world().blocks.upper_bound(at);
  const bool device = after != world().blocks.begin() && at < std::prev(after)->first + std::prev(after)->second;
  a->type = device ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  a->devicePointer = const_cast<void*>(p);
  return cudaSuccess;
}

// Streams and events.
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned, int) { return make(s); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) { return make(s); }
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) {
  *priority = 0;
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, enum cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode*) { return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t* e) { return make(e); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) { return make(e); }
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t, cudaStream_t, unsigned) { return cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  *milliseconds = 1;
  return cudaSuccess;
}

// Errors.
cudaError_t cudaGetLastError() {
  const cudaError_t error = last;
  last = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() { return last; }
const char* cudaGetErrorName(cudaError_t) { return "cudaError"; }
const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaErrorInvalidValue) return "invalid argument";
  if (error == cudaErrorInvalidConfiguration) return "invalid configuration argument";
  if (error == cudaErrorLaunchFailure) return "the emulation failed: see stderr";
  if (error != cudaErrorNoKernelImageForDevice) return "an error of the card that is not there";
  static std::string text;
  text = "the card that is not there has no kernel " + world().foreign;
  return text.c_str();
}

}  // extern "C"
