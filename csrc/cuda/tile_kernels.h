// The tile kernels of the GPU as the host sees them. Every function launches on `queue` and returns at once; what
// goes wrong with a launch is thrown as std::runtime_error. All addresses are the device's.
#pragma once

#include <cstdint>
#include <string>

#include "../binning.h"
#include "../policy.h"
#include "../tile.h"
#include "../variogram.h"

namespace semivario {

// Where the kernels run.
struct Queue {
    int device;
    void* stream;  // cudaStream_t
};

enum class Element { float32, bfloat16, float16 };

// A matrix with contiguous columns whose elements may be shorter than float32.
struct ElementMatrix {
    void* data;
    std::int64_t stride;
    Element element;
};

// What all tiles of one loss share, as cpu/tile_kernels.h has it for the CPU.
struct DeviceLoss {
    PolicyKind policy_kind;
    Policy policy;
    Variogram variogram;
    bool chord, features;
    const float* scale;  // s stays on the device
    const float* p;      // (N, 3)
    const float* q[3];   // x, y and z of the gallery, (M,) each
    const float *inverse_y, *row_image, *inverse_u;
    const std::int64_t* targets;
};

// float32 values of scratch that forward and column_statistics want for a tile; they may be 0.
std::int64_t forward_scratch(std::int64_t rows, std::int64_t columns);
std::int64_t column_statistics_scratch(std::int64_t rows, std::int64_t columns);

void forward(Queue, const DeviceLoss&, Tile, Matrix<float> dot, ElementMatrix vu, Matrix<float> extra,
             Matrix<double> statistics, float* scratch);

void column_statistics(Queue, const DeviceLoss&, Tile, Matrix<const float> logits, Matrix<const float> soft,
                       Matrix<double> statistics, float* scratch);

// `out` receives A; it may be the logits' own memory where it is float32.
void gradient(Queue, const DeviceLoss&, Tile, Matrix<const float> logits, Matrix<const float> extra, Side row_side,
              const Side* column_side, ElementMatrix out);

void haversine(Queue, const float* p, std::int64_t rows, const float* const q[3], std::int64_t columns,
               Matrix<float> out);

// The best k of every row so far as descending keys, 0 where there is none yet; see ranking.cu.
constexpr int MOST_RANKED = 1024;
void rank_tile(Queue, Tile, Matrix<const float> scores, std::uint64_t* best, int k);
void read_ranking(Queue, const std::uint64_t* best, std::int64_t count, float* values, std::int64_t* indices);

// d^¼ is kept in whole units like the other sums, so many of them to 1: to 5e-7, without bias.
constexpr float QUARTER_UNITS = 1048576.0f;

// The sums of a semivariogram, in units, and the table of its bins.
struct DeviceBinning {
    BinTable table;
    std::int64_t* sums;          // (blocks, blocks, K + 2, BIN_SUMS)
    std::int64_t* quarter_sums;  // (K + 2,) of d^¼; null where not wanted
    std::int64_t* histogram;     // (K + 2, cells) of d in [0, 2]; null where not wanted
    std::int64_t* duplicates;    // pairs at distance 0
    std::int64_t cells, blocks;
};

// `dot` holds the products of the two sides' embeddings; with `diagonal` only columns j > i count.
void bin_tile(Queue, const DeviceBinning&, const BinnedSide& rows, const BinnedSide& columns, const float* dot,
              std::int64_t stride, bool diagonal);

// The headers value by value, n pairs each, for the tests.
void distances(Queue, std::int64_t n, const float* p, const float* const q[3], float* h, float* chord);
void terms(Queue, const DeviceLoss&, std::int64_t n, const float* h, const float* lag, const float* d, float* rho,
           float* gamma, float* a, float* b, float* f);

// Why this build cannot run on a device; empty where it can.
std::string device_problem(int device);

}  // namespace semivario
