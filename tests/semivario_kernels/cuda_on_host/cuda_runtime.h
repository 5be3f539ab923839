// Stands in for CUDA's own <cuda_runtime.h>, so that g++ compiles csrc/cuda/*.cu into code that runs on the CPU.
//
// The blocks of a launch run one after another. The threads of a block are fibers that give way at barriers and
// shuffles only; a block whose threads do not all reach the same barrier is an error, where a GPU would hang or go
// on. With CUDA_ON_HOST_REVERSED=1 the threads of a block run from the last to the first: results that differ show
// a missing barrier.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#define __CUDACC__
#define __host__
#define __device__
#define __global__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__ static

using std::exp;

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct alignas(16) float4 {
    float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct alignas(8) ushort4 {
    unsigned short x, y, z, w;
};
inline ushort4 make_ushort4(unsigned short x, unsigned short y, unsigned short z, unsigned short w) {
    return {x, y, z, w};
}

namespace cuda_on_host {

constexpr unsigned WARP = 32;

enum class State { fresh, runnable, at_block_barrier, at_warp_barrier, finished };

struct Thread {
    dim3 index{0, 0, 0};
    State state = State::fresh;
    ucontext_t* context = nullptr;
    unsigned shuffles = 0, votes = 0;
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
};

class Block {
  public:
    static Block& current() {
        static Block block;
        return block;
    }

    dim3 index{0, 0, 0}, size{1};

    const dim3& thread_index() const { return threads_[running_].index; }

    // Runs all threads of a one-dimensional block.
    void run(const std::function<void()>& kernel) {
        kernel_ = &kernel;
        threads_.assign(size.x, Thread{});
        for (unsigned t = 0; t < size.x; ++t) threads_[t].index = dim3(t, 0, 0);
        slots_.assign(2 * size.x, 0);
        fibers_used_ = 0;
        votes_[0] = votes_[1] = votes_[2] = 0;
        reversed_ = std::getenv("CUDA_ON_HOST_REVERSED") != nullptr;
        for (bool moved = true; moved;) {
            moved = false;
            for (unsigned step = 0; step < size.x; ++step) {
                const unsigned t = reversed_ ? size.x - 1 - step : step;
                if (threads_[t].state == State::fresh || threads_[t].state == State::runnable) {
                    resume(t);
                    moved = true;
                }
            }
            moved = release() || moved;
        }
        for (const Thread& thread : threads_) {
            if (thread.state != State::finished) {
                throw std::runtime_error("the threads of block " + std::to_string(index.x) +
                                         " wait at different barriers");
            }
        }
    }

    void wait(State barrier) {
        Thread& thread = threads_[running_];
        thread.state = barrier;
        swapcontext(thread.context, &scheduler_);
    }

    // What lane `source` of the same warp hands in at the same shuffle. Slots alternate, so that one barrier is enough.
    template <typename T>
    T exchange(T value, unsigned source) {
        static_assert(sizeof(T) <= sizeof(std::uint64_t));
        const unsigned self = running_, half = threads_[self].shuffles++ % 2 * size.x;
        std::memcpy(&slots_[half + self], &value, sizeof value);
        wait(State::at_warp_barrier);
        T theirs;
        std::memcpy(&theirs, &slots_[half + self / WARP * WARP + source], sizeof theirs);
        return theirs;
    }

    unsigned lane() const { return running_ % WARP; }

    // Whether any thread of the block hands in a value other than 0.
    int any(int value) {
        const unsigned vote = threads_[running_].votes++;
        votes_[vote % 3] |= value;
        wait(State::at_block_barrier);
        votes_[(vote + 2) % 3] = 0;  // that of the vote before, which all have read
        return votes_[vote % 3];
    }

  private:
    void resume(unsigned t) {
        running_ = t;
        Thread& thread = threads_[t];
        if (thread.state == State::fresh) {
            if (fibers_used_ == fibers_.size()) {
                fibers_.push_back(std::make_unique<Fiber>());
                fibers_.back()->stack = std::make_unique<char[]>(STACK);
            }
            Fiber& fiber = *fibers_[fibers_used_++];
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.get();
            fiber.context.uc_stack.ss_size = STACK;
            fiber.context.uc_link = &scheduler_;
            thread.context = &fiber.context;
            makecontext(&fiber.context, &Block::enter, 0);
        }
        thread.state = State::runnable;
        swapcontext(&scheduler_, thread.context);
    }

    // A fiber runs thread after thread until one of them has to wait.
    static void enter() {
        Block& block = current();
        for (;;) {
            Thread& thread = block.threads_[block.running_];
            (*block.kernel_)();
            thread.state = State::finished;
            const unsigned next = block.running_ + (block.reversed_ ? -1u : 1u);
            if (next >= block.size.x || block.threads_[next].state != State::fresh) return;
            block.threads_[next].context = thread.context;
            block.threads_[next].state = State::runnable;
            block.running_ = next;
        }
    }

    // Opens the barriers that all threads of a warp or of the block have reached.
    bool release() {
        bool opened = open(0, size.x, State::at_block_barrier);
        for (unsigned first = 0; first < size.x; first += WARP) {
            opened = open(first, std::min(first + WARP, size.x), State::at_warp_barrier) || opened;
        }
        return opened;
    }

    bool open(unsigned first, unsigned end, State barrier) {
        for (unsigned t = first; t < end; ++t) {
            if (threads_[t].state != barrier) return false;
        }
        for (unsigned t = first; t < end; ++t) threads_[t].state = State::runnable;
        return true;
    }

    static constexpr std::size_t STACK = 1 << 17;
    const std::function<void()>* kernel_ = nullptr;
    std::vector<Thread> threads_;
    std::vector<std::unique_ptr<Fiber>> fibers_;
    std::size_t fibers_used_ = 0;
    std::vector<std::uint64_t> slots_;
    ucontext_t scheduler_;
    unsigned running_ = 0;
    int votes_[3] = {};
    bool reversed_ = false;
};

}  // namespace cuda_on_host

#define threadIdx (cuda_on_host::Block::current().thread_index())
#define blockIdx (cuda_on_host::Block::current().index)

inline void __syncthreads() { cuda_on_host::Block::current().wait(cuda_on_host::State::at_block_barrier); }
inline int __syncthreads_or(int value) { return cuda_on_host::Block::current().any(value); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int lane_mask) {
    auto& block = cuda_on_host::Block::current();
    return block.exchange(value, block.lane() ^ static_cast<unsigned>(lane_mask));
}

template <typename T>
T __shfl_up_sync(unsigned, T value, unsigned delta) {
    auto& block = cuda_on_host::Block::current();
    const unsigned lane = block.lane();
    return block.exchange(value, lane < delta ? lane : lane - delta);
}

template <typename T>
T atomicAdd(T* address, T value) {
    const T before = *address;
    *address += value;
    return before;
}

using cudaError_t = int;
using cudaStream_t = struct CUstream_st*;
constexpr cudaError_t cudaSuccess = 0;

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    std::size_t dynamicSmemBytes;
    cudaStream_t stream;
    void* attrs;
    unsigned numAttrs;
};
struct cudaFuncAttributes {};

inline const char* cudaGetErrorString(cudaError_t) { return "an error of the stand-in"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0; }
inline cudaError_t cudaSetDevice(int device) { return device; }
inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 0; }
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = 0; }

template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel*) {
    return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
    auto& block = cuda_on_host::Block::current();
    block.size = config->blockDim;
    const std::function<void()> thread = [&] { kernel(arguments...); };
    for (unsigned b = 0; b < config->gridDim.x; ++b) {
        block.index = dim3(b, 0, 0);
        block.run(thread);
    }
    return cudaSuccess;
}
