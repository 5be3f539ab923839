// The tile kernels of the CPU, compiled once per instruction set and chosen at run time.
#pragma once

#include <cstdint>

#include "../policy.h"
#include "../tile.h"
#include "../variogram.h"
#include "binned_kernels.h"
#include "ranking_kernels.h"

namespace semivario {

// What all tiles of one loss share. Addresses are borrowed; columns stand for the gallery, rows for the queries.
struct LossConstants {
    PolicyKind policy_kind;
    Policy policy;
    Variogram variogram;
    bool chord;           // the lag of ρ is the chord, not the arc
    bool features;        // d = 1 − cos of the features instead of the embeddings
    float scale;          // s
    int threads;
    const float* p;       // (N, 3)
    const float* q[3];    // x, y and z of the gallery, (M,) each
    const float* inverse_y;      // (M,) 1 / |y_j|
    const float* row_image;      // (N,) 0 where the query has no image; null without embeddings
    const float* inverse_u;      // (M,) 1 / |u_j|, 0 where the entry has no image
    const std::int64_t* targets; // (N,)
};

struct Kernels {
    const char* name;

    // dot → logits in place, −inf staying −inf; `extra` receives a (penalty) or f (rectify); the rows' sums.
    void (*forward)(const LossConstants&, Tile, Matrix<float> dot, Matrix<const float> vu, Matrix<float> extra,
                    Matrix<double> statistics);

    // The columns' sums of a tile of logits; `soft` is f or null.
    void (*column_statistics)(const LossConstants&, Tile, Matrix<const float> logits, Matrix<const float> soft,
                              Matrix<double> statistics);

    // logits → A = g·a / |y_j| in place, g = Σ over the sides of w·(exp(l − lse) − T); −inf becomes 0.
    void (*gradient)(const LossConstants&, Tile, Matrix<float> logits, Matrix<const float> extra, Side row_side,
                     const Side* column_side);

    // Great-circle distances in km of p (rows, 3) and of q's columns.
    void (*haversine)(const float* p, std::int64_t rows, const float* const q[3], std::int64_t columns,
                      Matrix<float> out, int threads);
    void (*haversine_float64)(const double* p, std::int64_t rows, const double* const q[3], std::int64_t columns,
                              Matrix<double> out, int threads);

    BinnedTile* binned_tile;
    const RankingKernels* ranking;

    // The headers value by value, n pairs each, for the tests.
    void (*distances)(std::int64_t n, const float* p, const float* const q[3], float* h, float* chord);
    void (*terms)(const LossConstants&, std::int64_t n, const float* h, const float* lag, const float* d, float* rho,
                  float* gamma, float* a, float* b, float* f);
};

// The best kernels this processor runs, or those that SEMIVARIO_ISA names; throws std::invalid_argument.
const Kernels& choose_kernels();

}  // namespace semivario
