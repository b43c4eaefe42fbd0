// scatter: the outputs of a batch to the memories of its requests.
//
// For each of `count` parts: `bytes` from `source + offset` to `address`; `room` means nothing here, so that the parts of
// a gather name the places of its answers too, padding left out. Parts may lie anywhere, in device memory or in pinned
// memory of the host, and may not overlap. Offsets and sizes are in bytes and of 64 bits. Exact.
//
// Grid: y over parts, x over the bytes of the largest; any size is right. Block: one dimension, at least 32 threads.

extern "C" __global__ void scatter(const u8* source, const Part* parts, u32 count) {
    const u64 first = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    const u64 step = static_cast<u64>(gridDim.x) * blockDim.x;
    for (u32 index = blockIdx.y; index < count; index += gridDim.y) {
        const Part part = parts[index];
        copy_bytes(reinterpret_cast<u8*>(part.address), source + part.offset, part.bytes, first, step);
    }
}
