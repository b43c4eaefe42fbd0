// What tch lacks of GPUs: streams, the allocator's books, and an allocator that is the server's. Built without CUDA.

#include <dlfcn.h>

#include <ATen/Context.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <unordered_set>

#include "shim.hpp"

struct CUstream_st;

namespace c10::cuda::CUDACachingAllocator {
class CUDAAllocator;
}

// The server's memory of GPUs; the ABI's functions.
struct rh_device_host {
    void* (*allocate)(size_t, uint32_t, void*, uint32_t);
    void (*free)(void*);
    void* (*stream)(uint32_t);
};

namespace {

using rh::guarded;

// What is in torch's CUDA part is found by name once that is open: this is built without CUDA, and runs with and without it.
template <class Function>
Function* in_cuda(const char* library, const char* name) {
    void* const open = dlopen(library, RTLD_NOW | RTLD_NOLOAD);
    return open ? reinterpret_cast<Function*>(dlsym(open, name)) : nullptr;
}

constexpr uint32_t SHARED = 1;
constexpr size_t MOST_DEVICES = 64;

// Set once, before all else, where torch takes its memory from the server.
std::optional<rh_device_host> server;
std::array<std::atomic<uint64_t>, MOST_DEVICES> held;
// What the thread takes is kept by torch when the model goes that it runs.
thread_local bool shared = false;

std::atomic<uint64_t>* held_on(int device) {
    return device >= 0 && static_cast<size_t>(device) < MOST_DEVICES ? &held[static_cast<size_t>(device)] : nullptr;
}

void* take(size_t bytes, int device, CUstream_st* stream) {
    if (bytes == 0) return nullptr;
    void* const at = server->allocate(bytes, static_cast<uint32_t>(device), stream, shared ? SHARED : 0);
    // Torch takes null for memory.
    TORCH_CHECK_WITH(OutOfMemoryError, at != nullptr, "the server gives no ", bytes, " bytes of GPU ", device);
    if (auto* const count = held_on(device)) *count += bytes;
    return at;
}

void give_back(void* at, size_t bytes, int device, CUstream_st*) {
    if (auto* const count = held_on(device)) *count -= bytes;
    server->free(at);
}

}  // namespace

// cuBLAS and cuBLASLt have a workspace for each thread and stream, which torch takes at the first product of matrices and keeps.
// It must not be the model's that happens to be first.
void rh::settle_workspaces(const c10::Stream& stream) {
    if (!server) return;
    thread_local std::unordered_set<void*> settled;
    if (settled.count(stream.native_handle())) return;
    static auto* const cublas = in_cuda<void*()>("libtorch_cuda.so", "_ZN2at4cuda24getCurrentCUDABlasHandleEv");
    static auto* const cublas_lt = in_cuda<void*()>("libtorch_cuda.so", "_ZN2at4cuda22getCUDABlasLtWorkspaceEv");
    struct Shared {
        Shared() { shared = true; }
        ~Shared() { shared = false; }
    } const scope;
    if (cublas) cublas();
    if (cublas_lt) cublas_lt();
    // Where there was no memory for them they are tried anew.
    settled.insert(stream.native_handle());
}

// A stream of the server's, or one of torch's own where it has none.
c10::Stream rh::stream_on(c10::Device device) {
    void* const given = server ? server->stream(static_cast<uint32_t>(device.index())) : nullptr;
    // Returns c10::cuda::CUDAStream, which is a c10::Stream and no more.
    static auto* const from = in_cuda<c10::Stream(CUstream_st*, c10::DeviceIndex)>(
        "libc10_cuda.so", "_ZN3c104cuda21getStreamFromExternalEP11CUstream_sta");
    if (given && from) return from(static_cast<CUstream_st*>(given), device.index());
    return c10::impl::VirtualGuardImpl(c10::kCUDA).getStreamFromGlobalPool(device);
}

extern "C" {

// Has CUDA's part of torch, if it is open, take its memory from the server. Before anything is taken of a GPU. `used` says whether
// it does.
int rh_use_server(const rh_device_host* host, int* used, char* error) {
    return guarded(error, [&] {
        using Allocator = c10::cuda::CUDACachingAllocator::CUDAAllocator;
        using Make = std::shared_ptr<Allocator>(std::function<void*(size_t, int, CUstream_st*)>,
                                                std::function<void(void*, size_t, int, CUstream_st*)>);
        using Change = void(const std::shared_ptr<Allocator>&);
        *used = 0;
        if (!dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD)) return;
        auto* const make = in_cuda<Make>(
            "libtorch_cuda.so",
            "_ZN5torch4cuda22CUDAPluggableAllocator21createCustomAllocatorESt8functionIFPvmiP11CUstream_stEES2_IFvS3_miS5_EE");
        auto* const change = in_cuda<Change>(
            "libtorch_cuda.so",
            "_ZN5torch4cuda22CUDAPluggableAllocator22changeCurrentAllocatorERKSt10shared_ptrIN3c104cuda20CUDACachingAllocator13CUDAAllocatorEE");
        TORCH_CHECK(make && change, "CUDA's part of this libtorch takes no other allocator");
        // For good: tensors outlive whoever would drop it.
        static const auto allocator = make(take, give_back);
        change(allocator);
        server = *host;
        *used = 1;
    });
}

// The bytes of a GPU that are in use, and those that were taken of it.
int rh_device_memory(int device, uint64_t* allocated, uint64_t* reserved, char* error) {
    return guarded(error, [&] {
        TORCH_CHECK(at::globalContext().hasCUDA(), "no CUDA");
        if (server) {
            const auto* const count = held_on(device);
            *allocated = *reserved = count ? count->load() : 0;
            return;
        }
        const auto stats = c10::getDeviceAllocator(c10::kCUDA)->getDeviceStats(static_cast<c10::DeviceIndex>(device));
        *allocated = static_cast<uint64_t>(stats.allocated_bytes[0].current);
        *reserved = static_cast<uint64_t>(stats.reserved_bytes[0].current);
    });
}

// The server's memory is not kept here.
int rh_empty_cache(char* error) {
    return guarded(error, [] {
        if (!server && at::globalContext().hasCUDA()) c10::getDeviceAllocator(c10::kCUDA)->emptyCache();
    });
}

// Waits for all that a GPU was asked for: what a load wrote is used on other streams.
int rh_synchronize(int device, char* error) {
    return guarded(error, [&] {
        if (device >= 0) c10::impl::VirtualGuardImpl(c10::kCUDA).synchronizeDevice(static_cast<c10::DeviceIndex>(device));
    });
}

}  // extern "C"
