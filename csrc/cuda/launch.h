// Launches on the caller's device and stream, their errors as exceptions.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "tile_kernels.h"

namespace semivario {

inline void check(cudaError_t error, const char* what) {
    if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": CUDA error: " + cudaGetErrorString(error));
}

// Makes a device current and gives back the one before.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        check(cudaGetDevice(&before_), "cudaGetDevice");
        changed_ = before_ != device;
        if (changed_) check(cudaSetDevice(device), "cudaSetDevice");
    }
    ~DeviceGuard() {
        if (changed_) cudaSetDevice(before_);
    }
    DeviceGuard(const DeviceGuard&) = delete;

  private:
    int before_ = 0;
    bool changed_ = false;
};

inline std::int64_t pieces(std::int64_t total, std::int64_t size) { return (total + size - 1) / size; }

// One-dimensional grids of up to 2³¹ − 1 blocks.
template <typename... Parameters, typename... Arguments>
void launch(Queue queue, const char* name, void (*kernel)(Parameters...), std::int64_t blocks, int threads,
            Arguments... arguments) {
    if (blocks <= 0) return;
    if (blocks > 0x7fffffff) throw std::invalid_argument(std::string(name) + ": the tile is too large for one launch");
    const DeviceGuard guard(queue.device);
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.stream = static_cast<cudaStream_t>(queue.stream);
    check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), name);
}

}  // namespace semivario
