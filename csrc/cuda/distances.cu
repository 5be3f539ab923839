// Great-circle distances of two sets of places, and for the tests the shared headers pair by pair.
#include "../geometry.h"
#include "launch.h"
#include "quad.h"

namespace semivario {
namespace {

constexpr int THREADS = 256;
constexpr int COLUMNS = THREADS * QUAD;
constexpr int ROWS = 16;  // share a thread's four columns

__global__ void __launch_bounds__(THREADS)
    haversine_tile(const float* p, std::int64_t rows, const float* qx, const float* qy, const float* qz,
                   std::int64_t columns, Matrix<float> out) {
    const std::int64_t segments = (columns + COLUMNS - 1) / COLUMNS;
    const std::int64_t start = blockIdx.x % segments * COLUMNS + threadIdx.x * QUAD;
    const std::int64_t first = blockIdx.x / segments * ROWS, end = first + ROWS < rows ? first + ROWS : rows;
    const int count = quad_size(start, columns);
    if (count == 0) return;
    const Quad x = load_quad(qx + start, count, 0.0f), y = load_quad(qy + start, count, 0.0f);
    const Quad z = load_quad(qz + start, count, 0.0f);
    for (std::int64_t i = first; i < end; ++i) {
        const float px = p[3 * i], py = p[3 * i + 1], pz = p[3 * i + 2];
        float h[QUAD];
#pragma unroll
        for (int k = 0; k < QUAD; ++k) {
            const float near = squared_norm(px - x.at[k], py - y.at[k], pz - z.at[k]);
            const float far = squared_norm(px + x.at[k], py + y.at[k], pz + z.at[k]);
            h[k] = great_circle_km(near, far);
        }
        store_quad(out.row(i) + start, count, h);
    }
}

__global__ void __launch_bounds__(THREADS)
    distances_of_pairs(std::int64_t n, const float* p, const float* qx, const float* qy, const float* qz, float* h,
                       float* chord) {
    const std::int64_t k = static_cast<std::int64_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (k >= n) return;
    const float px = p[3 * k], py = p[3 * k + 1], pz = p[3 * k + 2];
    const float near = squared_norm(px - qx[k], py - qy[k], pz - qz[k]);
    h[k] = great_circle_km(near, squared_norm(px + qx[k], py + qy[k], pz + qz[k]));
    chord[k] = chord_km(near);
}

__device__ __forceinline__ PairTerms terms_of(const DeviceLoss& loss, float h, float d, float gamma, float rho) {
    using K = PolicyKind;
    switch (loss.policy_kind) {
        case K::semivariogram: return pair_terms<K::semivariogram>(loss.policy, h, d, gamma, rho);
        case K::explained: return pair_terms<K::explained>(loss.policy, h, d, gamma, rho);
        case K::threshold: return pair_terms<K::threshold>(loss.policy, h, d, gamma, rho);
        case K::rectify: return pair_terms<K::rectify>(loss.policy, h, d, gamma, rho);
        case K::penalty: return pair_terms<K::penalty>(loss.policy, h, d, gamma, rho);
        case K::distance: return pair_terms<K::distance>(loss.policy, h, d, gamma, rho);
        case K::distance_linear: return pair_terms<K::distance_linear>(loss.policy, h, d, gamma, rho);
        default: return pair_terms<K::none>(loss.policy, h, d, gamma, rho);
    }
}

__global__ void __launch_bounds__(THREADS)
    terms_of_pairs(const __grid_constant__ DeviceLoss loss, std::int64_t n, const float* h, const float* lag,
                   const float* d, float* rho, float* gamma, float* a, float* b, float* f) {
    const std::int64_t k = static_cast<std::int64_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (k >= n) return;
    const float lags[1] = {lag[k]};
    float correlations[1];
    correlation(loss.variogram, lags, correlations);
    rho[k] = correlations[0];
    gamma[k] = semivariance(loss.variogram.nugget, loss.variogram.psill, rho[k]);
    const PairTerms terms = terms_of(loss, h[k], d[k], gamma[k], rho[k]);
    a[k] = terms.a;
    b[k] = terms.b;
    f[k] = terms.f;
}

}  // namespace

void haversine(Queue queue, const float* p, std::int64_t rows, const float* const q[3], std::int64_t columns,
               Matrix<float> out) {
    launch(queue, "haversine", haversine_tile, pieces(rows, ROWS) * pieces(columns, COLUMNS), THREADS, p, rows, q[0],
           q[1], q[2], columns, out);
}

void distances(Queue queue, std::int64_t n, const float* p, const float* const q[3], float* h, float* chord) {
    launch(queue, "distances", distances_of_pairs, pieces(n, THREADS), THREADS, n, p, q[0], q[1], q[2], h, chord);
}

void terms(Queue queue, const DeviceLoss& loss, std::int64_t n, const float* h, const float* lag, const float* d,
           float* rho, float* gamma, float* a, float* b, float* f) {
    launch(queue, "terms", terms_of_pairs, pieces(n, THREADS), THREADS, loss, n, h, lag, d, rho, gamma, a, b, f);
}

std::string device_problem(int device) {
    int driver = 0, runtime = 0;
    cudaRuntimeGetVersion(&runtime);
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return "no CUDA driver is installed";
    if (driver / 1000 < runtime / 1000) {
        return "the driver serves CUDA " + std::to_string(driver / 1000) + ", the kernels were built with CUDA " +
               std::to_string(runtime / 1000);
    }
    try {
        const DeviceGuard guard(device);
        cudaFuncAttributes attributes;
        check(cudaFuncGetAttributes(&attributes, haversine_tile), "device");
    } catch (const std::exception& error) {
        return error.what();
    }
    return "";
}

}  // namespace semivario
