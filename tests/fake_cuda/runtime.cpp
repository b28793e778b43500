// A CUDA runtime that computes nothing, for LD_PRELOAD: torch's CUDA build then finds one GPU. Memory
// is reserved and never filled, a kernel launch only counts, a copy to the host gives zeros, and
// every stream is always idle. All of torch above it is the real one: the dispatcher, the caching
// allocator, autograd's threads and streams, NCCL's process group. A function that is missing here
// is the real one, which fails without a driver.
#include "fake_cuda.h"

#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>

namespace {

constexpr size_t kMemory = size_t{1} << 40;  // bytes; torch reserves what it asks for, no more
constexpr int kMajor = 8, kProcessors = 108;

std::recursive_mutex mutex;
size_t allocated = 0;

struct Block {
    size_t bytes;
    bool device;
};

// Never destroyed: torch frees memory while the process exits.
auto& blocks = *new std::map<uintptr_t, Block>;
auto& counters = *new std::map<std::string, int64_t>;
auto& kernels = *new std::unordered_map<const void*, const char*>;

const Block* find(const void* pointer) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    auto address = reinterpret_cast<uintptr_t>(pointer);
    auto next = blocks.upper_bound(address);
    if (next == blocks.begin()) return nullptr;
    auto& [start, block] = *--next;
    return address < start + block.bytes ? &block : nullptr;
}

cudaError_t reserve(void** pointer, size_t bytes, bool device) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    bytes = bytes ? bytes : 1;
    if (device && allocated + bytes > kMemory) return cudaErrorMemoryAllocation;
    void* found = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED) return cudaErrorMemoryAllocation;
    blocks[reinterpret_cast<uintptr_t>(found)] = {bytes, device};
    allocated += device ? bytes : 0;
    *pointer = found;
    return cudaSuccess;
}

cudaError_t release(void* pointer) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    auto found = blocks.find(reinterpret_cast<uintptr_t>(pointer));
    if (found == blocks.end()) return pointer ? cudaErrorInvalidValue : cudaSuccess;
    allocated -= found->second.device ? found->second.bytes : 0;
    munmap(pointer, found->second.bytes);
    blocks.erase(found);
    return cudaSuccess;
}

// Named by both ends: "to device from pinned", "to device from pageable", "to pinned from device".
const char* place(const void* pointer) {
    const Block* block = find(pointer);
    return !block ? "pageable" : block->device ? "device" : "pinned";
}

void copy(void* to, const void* from, size_t bytes) {
    std::string way = std::string("copy to ") + place(to) + " from " + place(from);
    count(way);
    count(way + ", bytes", static_cast<int64_t>(bytes));
    if (std::string(place(to)) != "device") std::memset(to, 0, bytes);
}

void launch(const void* function) {
    count("launches");
    std::lock_guard<std::recursive_mutex> lock(mutex);
    auto found = kernels.find(function);
    count(std::string("kernel ") + (found == kernels.end() ? "unknown" : found->second));
}

int success() { return 0; }

struct Configuration {
    dim3 grid, block;
    size_t shared;
    void* stream;
};
thread_local Configuration configuration;

}  // namespace

void count(const std::string& name, int64_t amount) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    counters[name] += amount;
}

void* fresh() {
    static uintptr_t last = 0x1000;
    std::lock_guard<std::recursive_mutex> lock(mutex);
    return reinterpret_cast<void*>(last += 16);
}

extern "C" {

// All counters as lines "name\tvalue\n", if they fit; returns the size that they need.
size_t fake_cuda_counters(char* text, size_t size) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    std::string all;
    for (auto& [name, value] : counters) all += name + "\t" + std::to_string(value) + "\n";
    if (size > all.size()) std::memcpy(text, all.c_str(), all.size() + 1);
    return all.size() + 1;
}

void fake_cuda_reset() {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    counters.clear();
}

// Kernels

void** __cudaRegisterFatBinary(void*) {
    static void* handle = nullptr;
    return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*,
                            void*, void*, int*) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    kernels[host] = name;
}
char __cudaInitModule(void**) { return 1; }
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
    configuration = {grid, block, shared, stream};
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
    *grid = configuration.grid, *block = configuration.block, *shared = configuration.shared;
    *static_cast<void**>(stream) = configuration.stream;
    return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
    *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function));
    return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3, dim3, void**, size_t, cudaStream_t) {
    launch(kernel);
    return cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void* function, dim3, dim3, void**, size_t, cudaStream_t) {
    launch(function);
    return cudaSuccess;
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void* function, void**) {
    launch(function);
    return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
    *attributes = {};
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 32;
    attributes->ptxVersion = attributes->binaryVersion = 10 * kMajor;
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t, cudaFuncAttribute, int, int) {
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks_of, const void*,
                                                                   int, size_t, unsigned) {
    *blocks_of = 2;
    return cudaSuccess;
}
cudaError_t cudaGetSymbolAddress(void** pointer, const void*) { return cudaMalloc(pointer, 4096); }

// Devices

cudaError_t cudaGetDeviceCount(int* devices) {
    *devices = 1;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidDevice : cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
    *properties = {};
    std::snprintf(properties->name, sizeof properties->name, "no GPU (tests/fake_cuda)");
    properties->totalGlobalMem = kMemory;
    properties->sharedMemPerBlock = 48 << 10;
    properties->sharedMemPerBlockOptin = 227 << 10;
    properties->sharedMemPerMultiprocessor = 228 << 10;
    properties->regsPerBlock = properties->regsPerMultiprocessor = 64 << 10;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = properties->maxThreadsDim[0] = 1024;
    properties->maxThreadsDim[1] = 1024, properties->maxThreadsDim[2] = 64;
    properties->maxGridSize[0] = INT32_MAX;
    properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
    properties->maxThreadsPerMultiProcessor = 2048;
    properties->maxBlocksPerMultiProcessor = 32;
    properties->multiProcessorCount = kProcessors;
    properties->major = kMajor;
    properties->textureAlignment = 512;
    properties->l2CacheSize = 50 << 20;
    properties->concurrentKernels = properties->unifiedAddressing = properties->canMapHostMemory =
        1;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    cudaDeviceProp properties;
    cudaGetDeviceProperties(&properties, device);
    switch (attribute) {
        case cudaDevAttrMultiProcessorCount: *value = kProcessors; break;
        case cudaDevAttrComputeCapabilityMajor: *value = kMajor; break;
        case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            *value = static_cast<int>(properties.sharedMemPerBlockOptin);
            break;
        case cudaDevAttrMaxGridDimX: *value = INT32_MAX; break;
        case cudaDevAttrMaxGridDimY:
        case cudaDevAttrMaxGridDimZ: *value = 65535; break;
        case cudaDevAttrWarpSize: *value = 32; break;
        default: *value = 0;
    }
    return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    *least = 0, *greatest = -5;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int) {
    std::snprintf(text, length, "0000:00:00.0");
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
    count("synchronize device");
    return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
// Of the driver: success.
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
    *function = reinterpret_cast<void*>(success);
    if (found) *found = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}

// Memory

cudaError_t cudaMalloc(void** pointer, size_t bytes) { return reserve(pointer, bytes, true); }
cudaError_t cudaFree(void* pointer) { return release(pointer); }
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
    count("pinned, bytes", static_cast<int64_t>(bytes));
    return reserve(pointer, bytes, false);
}
cudaError_t cudaFreeHost(void* pointer) { return release(pointer); }
cudaError_t cudaMemGetInfo(size_t* left, size_t* total) {
    *left = kMemory - allocated, *total = kMemory;
    return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
    const Block* block = find(pointer);
    *attributes = {};
    attributes->type = !block           ? cudaMemoryTypeUnregistered
                       : block->device ? cudaMemoryTypeDevice
                                       : cudaMemoryTypeHost;
    attributes->devicePointer = attributes->hostPointer = const_cast<void*>(pointer);
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
    count("synchronize copy");
    copy(to, from, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
    copy(to, from, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemset(void*, int, size_t) { return cudaSuccess; }
cudaError_t cudaMemsetAsync(void*, int, size_t, cudaStream_t) { return cudaSuccess; }

// Streams and events

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
    *stream = static_cast<cudaStream_t>(fresh());
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
    return cudaStreamCreateWithPriority(stream, 0, 0);
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) {
    *priority = 0;
    return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) {
    count("synchronize stream");
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) {
    count("stream waits");
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
    *status = cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status,
                                     unsigned long long*, cudaGraph_t*, const cudaGraphNode_t**,
                                     const cudaGraphEdgeData**, size_t*) {
    *status = cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    *event = static_cast<cudaEvent_t>(fresh());
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) {
    count("events");
    return cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t, cudaStream_t, unsigned) {
    count("events");
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) {
    count("synchronize event");
    return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
    *milliseconds = 1.0f;
    return cudaSuccess;
}

}  // extern "C"
