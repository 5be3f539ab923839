// The Python face of the GPU kernels. Tensors come as addresses and streams as handles, so that the extension is not
// linked to torch; the CUDA run-time library is linked statically and looks for a driver only when it is called.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../loss_arguments.h"
#include "tile_kernels.h"

namespace py = pybind11;

namespace semivario {
namespace {

using Address = std::uintptr_t;
using Index = std::int64_t;

template <typename T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

using Place = std::tuple<Address, Index>;                      // and row stride
using ElementPlace = std::tuple<Address, Index, std::string>;  // and dtype

template <typename T>
Matrix<T> make_matrix(Place place) {
    return {at<T>(std::get<0>(place)), std::get<1>(place)};
}

ElementMatrix make_element_matrix(const ElementPlace& place) {
    const auto& [address, stride, name] = place;
    const Element element = find_kind<Element>(
        {{"float32", Element::float32}, {"bfloat16", Element::bfloat16}, {"float16", Element::float16}}, "dtype", name);
    return {at<void>(address), stride, element};
}

Queue make_queue(int device, Address stream) { return {device, at<void>(stream)}; }

class Epilogue {
  public:
    Epilogue(const std::string& policy_kind, const std::map<std::string, double>& policy,
             const std::vector<StructureTuple>& structures, double nugget, double psill, const std::string& metric,
             Address scale, bool features, int device, Address stream, Address p, Address q, Index q_stride,
             Address inverse_y, Address image_v, Address inverse_u, Address targets)
        : queue_(make_queue(device, stream)) {
        const PolicyKind kind = checked_policy_kind(policy_kind, metric, !structures.empty(), p != 0 && q != 0,
                                                    features || (image_v != 0 && inverse_u != 0));
        const float* x = at<const float>(q);
        loss_ = {kind,
                 make_policy(policy, nugget + psill),
                 make_variogram(structures, nugget, psill),
                 metric == "chord",
                 features,
                 at<const float>(scale),
                 at<const float>(p),
                 {x, q == 0 ? nullptr : x + q_stride, q == 0 ? nullptr : x + 2 * q_stride},
                 at<const float>(inverse_y),
                 at<const float>(image_v),
                 at<const float>(inverse_u),
                 at<const Index>(targets)};
    }

    void forward(Index first_row, Index rows, Index first_column, Index columns, Place dot, ElementPlace vu,
                 Place extra, Place statistics, Address scratch) const {
        if (reads_dissimilarity(loss_.policy_kind) && !loss_.features && std::get<0>(vu) == 0) {
            throw py::value_error("vu: this policy wants the embeddings' products, got none");
        }
        semivario::forward(queue_, loss_, {first_row, rows, first_column, columns}, make_matrix<float>(dot),
                           make_element_matrix(vu), make_matrix<float>(extra), make_matrix<double>(statistics),
                           at<float>(scratch));
    }

    void column_statistics(Index first_row, Index rows, Index first_column, Index columns, Place logits, Place soft,
                           Place statistics, Address scratch) const {
        semivario::column_statistics(queue_, loss_, {first_row, rows, first_column, columns},
                                     make_matrix<const float>(logits), make_matrix<const float>(soft),
                                     make_matrix<double>(statistics), at<float>(scratch));
    }

    using SideAddresses = std::tuple<Address, Address, Address, Address>;  // lse, weight, hard, smooth

    void gradient(Index first_row, Index rows, Index first_column, Index columns, Place logits, Place extra,
                  SideAddresses row_side, SideAddresses column_side, ElementPlace out) const {
        const PolicyKind kind = loss_.policy_kind;
        if ((kind == PolicyKind::penalty || kind == PolicyKind::rectify) && std::get<0>(extra) == 0) {
            throw py::value_error("extra: this policy wants what forward left there, got none");
        }
        const auto make_side = [](const SideAddresses& side) {
            return Side{at<const float>(std::get<0>(side)), at<const float>(std::get<1>(side)),
                        at<const float>(std::get<2>(side)), at<const float>(std::get<3>(side))};
        };
        const Side columns_side = make_side(column_side);
        semivario::gradient(queue_, loss_, {first_row, rows, first_column, columns}, make_matrix<const float>(logits),
                            make_matrix<const float>(extra), make_side(row_side),
                            columns_side.log_sum_exp == nullptr ? nullptr : &columns_side, make_element_matrix(out));
    }

    void terms(Index count, Address h, Address lag, Address d, Address rho, Address gamma, Address a, Address b,
               Address f) const {
        semivario::terms(queue_, loss_, count, at<const float>(h), at<const float>(lag), at<const float>(d),
                         at<float>(rho), at<float>(gamma), at<float>(a), at<float>(b), at<float>(f));
    }

  private:
    Queue queue_;
    DeviceLoss loss_{};
};

// The sums of a semivariogram: all addresses are borrowed until the last tile.
class Binning {
  public:
    Binning(int device, Address stream, Address edges, Address cells, std::int32_t cell_count,
            std::int32_t first_cell, std::int32_t shift, float offset, std::int32_t bins, Index blocks, Address sums,
            Address quarter_sums, Address histogram, Index histogram_cells, Address duplicates)
        : queue_(make_queue(device, stream)),
          out_{{at<const double>(edges), at<const std::int32_t>(cells), cell_count, first_cell, shift, offset, bins},
               at<Index>(sums),
               at<Index>(quarter_sums),
               at<Index>(histogram),
               at<Index>(duplicates),
               histogram_cells,
               blocks} {}

    using SideAddresses = std::tuple<Index, Address, Index, Address, Address>;  // size, axes, stride, norm, block

    void add(const SideAddresses& rows, const SideAddresses& columns, Place dot, bool diagonal) const {
        bin_tile(queue_, out_, make_side(rows), make_side(columns), at<const float>(std::get<0>(dot)),
                 std::get<1>(dot), diagonal);
    }

  private:
    static BinnedSide make_side(const SideAddresses& side) {
        const auto [size, axes, stride, inverse_norm, block] = side;
        const double* x = at<const double>(axes);
        return {size, {x, x + stride, x + 2 * stride}, at<const float>(inverse_norm), at<const std::int32_t>(block)};
    }

    Queue queue_;
    DeviceBinning out_;
};

// Positions of the second set: x, y and z in arrays `stride` apart.
struct Axes {
    const float* axes[3];
    Axes(Address q, Index stride)
        : axes{at<const float>(q), at<const float>(q) + stride, at<const float>(q) + 2 * stride} {}
};

void haversine_at(int device, Address stream, Address p, Index rows, Address q, Index q_stride, Index columns,
               Place out) {
    semivario::haversine(make_queue(device, stream), at<const float>(p), rows, Axes(q, q_stride).axes, columns,
                         make_matrix<float>(out));
}

void rank_tile_at(int device, Address stream, Place scores, Index rows, Index first_column, Index columns, Address best,
               int k) {
    semivario::rank_tile(make_queue(device, stream), {0, rows, first_column, columns},
                         make_matrix<const float>(scores), at<std::uint64_t>(best), k);
}

void read_ranking_at(int device, Address stream, Address best, Index count, Address values, Address indices) {
    semivario::read_ranking(make_queue(device, stream), at<const std::uint64_t>(best), count, at<float>(values),
                            at<Index>(indices));
}

void pair_distances(int device, Address stream, Index count, Address p, Address q, Index q_stride, Address h,
                    Address chord) {
    semivario::distances(make_queue(device, stream), count, at<const float>(p), Axes(q, q_stride).axes,
                         at<float>(h), at<float>(chord));
}

}  // namespace
}  // namespace semivario

PYBIND11_MODULE(_native_cuda, m) {
    using semivario::Epilogue;
    using release = py::call_guard<py::gil_scoped_release>;
    m.doc() = "Fused pair arithmetic on NVIDIA GPUs, on raw addresses; see backends/native_epilogue.py.";
    m.attr("MOST_RANKED") = semivario::MOST_RANKED;

    py::class_<Epilogue>(m, "Epilogue", "The arithmetic after the matrix products, for the tiles of one loss.")
        .def(py::init<const std::string&, const std::map<std::string, double>&,
                      const std::vector<semivario::StructureTuple>&, double, double, const std::string&,
                      std::uintptr_t, bool, int, std::uintptr_t, std::uintptr_t, std::uintptr_t, std::int64_t,
                      std::uintptr_t, std::uintptr_t, std::uintptr_t, std::uintptr_t>(),
             py::kw_only(), py::arg("policy_kind"), py::arg("policy"), py::arg("structures"), py::arg("nugget"),
             py::arg("psill"), py::arg("metric"), py::arg("scale"), py::arg("features"), py::arg("device"),
             py::arg("stream"), py::arg("p"), py::arg("q"), py::arg("q_stride"), py::arg("inverse_y"),
             py::arg("image_v"), py::arg("inverse_u"), py::arg("targets"))
        .def("forward", &Epilogue::forward, release())
        .def("column_statistics", &Epilogue::column_statistics, release())
        .def("gradient", &Epilogue::gradient, release())
        .def("terms", &Epilogue::terms, release(), "rho, gamma, a, b, f of pairs from h, lag and d, for the tests.");

    using semivario::Binning;
    const auto units = py::make_tuple(1.0, semivario::H_UNITS, semivario::D_UNITS, semivario::D2_UNITS);
    py::class_<Binning>(m, "Binning", "Sums over the pairs of tiles, per distance bin, in whole units.")
        .def(py::init<int, std::uintptr_t, std::uintptr_t, std::uintptr_t, std::int32_t, std::int32_t, std::int32_t,
                      float, std::int32_t, std::int64_t, std::uintptr_t, std::uintptr_t, std::uintptr_t, std::int64_t,
                      std::uintptr_t>(),
             py::kw_only(), py::arg("device"), py::arg("stream"), py::arg("edges"), py::arg("cells"),
             py::arg("cell_count"), py::arg("first_cell"), py::arg("shift"), py::arg("offset"), py::arg("bins"),
             py::arg("blocks"), py::arg("sums"), py::arg("quarter_sums"), py::arg("histogram"),
             py::arg("histogram_cells"), py::arg("duplicates"))
        .def_property_readonly_static("units", [units](py::object) { return units; }, "Of count, h, d and d².")
        .def_property_readonly_static(
            "quarter_units", [](py::object) { return semivario::QUARTER_UNITS; }, "Of d^¼.")
        .def("add", &Binning::add, release());

    m.def("forward_scratch", &semivario::forward_scratch, "float32 values of scratch for a tile of rows × columns.");
    m.def("column_statistics_scratch", &semivario::column_statistics_scratch,
          "float32 values of scratch for a tile of rows × columns.");
    m.def("haversine", &semivario::haversine_at, release(), py::kw_only(), py::arg("device"), py::arg("stream"),
          py::arg("p"), py::arg("rows"), py::arg("q"), py::arg("q_stride"), py::arg("columns"), py::arg("out"),
          "Great-circle distances in km, (rows, columns).");
    m.def("rank_tile", &semivario::rank_tile_at, release(), py::kw_only(), py::arg("device"), py::arg("stream"),
          py::arg("scores"), py::arg("rows"), py::arg("first_column"), py::arg("columns"), py::arg("best"),
          py::arg("k"), "Adds a tile of scores to the best k of its rows.");
    m.def("read_ranking", &semivario::read_ranking_at, release(), py::kw_only(), py::arg("device"), py::arg("stream"),
          py::arg("best"), py::arg("count"), py::arg("values"), py::arg("indices"), "Scores and indices of what rank_tile left.");
    m.def("device_problem", &semivario::device_problem, release(),
          "Why these kernels cannot run on a device; empty where they can.");
    m.def("pair_distances", &semivario::pair_distances, release(), py::kw_only(), py::arg("device"), py::arg("stream"),
          py::arg("count"), py::arg("p"), py::arg("q"), py::arg("q_stride"), py::arg("h"), py::arg("chord"),
          "h and chord in km of pairs (p_k, q_k), for the tests.");
}
