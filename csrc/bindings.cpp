// The Python face of the CPU kernels. Tensors come as addresses, so that the extension is not linked to torch and
// one build serves every version of it; semivario_kernels/backends/native_epilogue.py checks what they point to.
//
// OpenMP's symbols (GOMP_*) are left undefined on purpose: torch has loaded its own copy of the run-time library,
// and a second one would bring a second pool of spinning threads.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/amx_product.h"
#include "cpu/tile_kernels.h"
#include "loss_arguments.h"

namespace py = pybind11;

namespace semivario {
namespace {

using Address = std::uintptr_t;
using Index = std::int64_t;

template <typename T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

// Positions with one array per coordinate, as the SIMD loops over columns read them.
template <typename T>
class Coordinates {
  public:
    Coordinates(const T* positions, Index count) : values_(positions == nullptr ? 0 : 3 * count) {
        for (int k = 0; k < 3; ++k) {
            axes_[k] = values_.data() + (positions == nullptr ? 0 : k * count);
            if (positions == nullptr) continue;
            for (Index j = 0; j < count; ++j) values_[k * count + j] = positions[3 * j + k];
        }
    }
    Coordinates(const Coordinates&) = delete;
    const T* const* axes() const { return axes_; }

  private:
    std::vector<T> values_;
    const T* axes_[3];
};

class Epilogue {
  public:
    Epilogue(const std::string& policy_kind, const std::map<std::string, double>& policy,
             const std::vector<StructureTuple>& structures, double nugget, double psill, const std::string& metric,
             double scale, bool features, int threads, Address p, Address q, Index gallery, Address inverse_y,
             Address image_v, Address inverse_u, Address targets)
        : kernels_(choose_kernels()), q_(at<const float>(q), gallery) {
        const PolicyKind kind = checked_policy_kind(policy_kind, metric, !structures.empty(), p != 0 && q != 0,
                                                    features || (image_v != 0 && inverse_u != 0));
        constants_ = {kind,
                      make_policy(policy, nugget + psill),
                      make_variogram(structures, nugget, psill),
                      metric == "chord",
                      features,
                      static_cast<float>(scale),
                      threads,
                      at<const float>(p),
                      {q_.axes()[0], q_.axes()[1], q_.axes()[2]},
                      at<const float>(inverse_y),
                      at<const float>(image_v),
                      at<const float>(inverse_u),
                      at<const Index>(targets)};
    }

    const char* isa() const { return kernels_.name; }

    void forward(Index first_row, Index rows, Index first_column, Index columns, Address dot, Index dot_stride,
                 Address vu, Index vu_stride, Address extra, Index extra_stride, Address statistics,
                 Index statistics_stride) const {
        if (reads_dissimilarity(constants_.policy_kind) && !constants_.features && vu == 0) {
            throw py::value_error("vu: this policy wants the embeddings' products, got none");
        }
        kernels_.forward(constants_, {first_row, rows, first_column, columns}, {at<float>(dot), dot_stride},
                         {at<const float>(vu), vu_stride}, {at<float>(extra), extra_stride},
                         {at<double>(statistics), statistics_stride});
    }

    void column_statistics(Index first_row, Index rows, Index first_column, Index columns, Address logits,
                           Index stride, Address soft, Index soft_stride, Address statistics,
                           Index statistics_stride) const {
        kernels_.column_statistics(constants_, {first_row, rows, first_column, columns},
                                   {at<const float>(logits), stride}, {at<const float>(soft), soft_stride},
                                   {at<double>(statistics), statistics_stride});
    }

    using SideAddresses = std::tuple<Address, Address, Address, Address>;  // lse, weight, hard, smooth

    void gradient(Index first_row, Index rows, Index first_column, Index columns, Address logits, Index stride,
                  Address extra, Index extra_stride, SideAddresses row_side, SideAddresses column_side) const {
        const PolicyKind kind = constants_.policy_kind;
        if ((kind == PolicyKind::penalty || kind == PolicyKind::rectify) && extra == 0) {
            throw py::value_error("extra: this policy wants what forward left there, got none");
        }
        const auto make_side = [](const SideAddresses& side) {
            return Side{at<const float>(std::get<0>(side)), at<const float>(std::get<1>(side)),
                        at<const float>(std::get<2>(side)), at<const float>(std::get<3>(side))};
        };
        const Side columns_side = make_side(column_side);
        kernels_.gradient(constants_, {first_row, rows, first_column, columns}, {at<float>(logits), stride},
                          {at<const float>(extra), extra_stride}, make_side(row_side),
                          columns_side.log_sum_exp == nullptr ? nullptr : &columns_side);
    }

    void terms(Index count, Address h, Address lag, Address d, Address rho, Address gamma, Address a, Address b,
               Address f) const {
        kernels_.terms(constants_, count, at<const float>(h), at<const float>(lag), at<const float>(d),
                       at<float>(rho), at<float>(gamma), at<float>(a), at<float>(b), at<float>(f));
    }

  private:
    const Kernels& kernels_;
    Coordinates<float> q_;
    LossConstants constants_{};
};

// The sums of a semivariogram: the addresses are borrowed until the last tile.
class Binning {
  public:
    Binning(Address edges, Address cells, std::int32_t cell_count, std::int32_t first_cell, std::int32_t shift,
            float offset, std::int32_t bins, Index blocks, int threads, Address sums, Address quarter_sums,
            Address histogram, Index histogram_cells, Address duplicates)
        : kernels_(choose_kernels()),
          table_{at<const double>(edges), at<const std::int32_t>(cells), cell_count, first_cell, shift, offset, bins},
          out_{at<Index>(sums),
               at<double>(quarter_sums),
               at<Index>(histogram),
               at<Index>(duplicates),
               histogram_cells,
               blocks,
               threads} {}

    using SideAddresses = std::tuple<Index, Address, Index, Address, Address>;  // size, axes, stride, norm, block

    void add(const SideAddresses& rows, const SideAddresses& columns, Address met_rows, Address dot, Index stride,
             bool diagonal) const {
        kernels_.binned_tile(table_, make_side(rows), make_side(columns), at<const RowRange>(met_rows),
                             at<const float>(dot), stride, diagonal, out_);
    }

  private:
    static BinnedSide make_side(const SideAddresses& side) {
        const auto [size, axes, stride, inverse_norm, block] = side;
        const double* x = at<const double>(axes);
        return {size, {x, x + stride, x + 2 * stride}, at<const float>(inverse_norm), at<const std::int32_t>(block)};
    }

    const Kernels& kernels_;
    BinTable table_;
    BinnedSums out_;
};

Element checked_element(const std::string& name) {
    if (name == "float32") return Element::float32;
    if (name == "bfloat16") return Element::bfloat16;
    if (name == "float16") return Element::float16;
    throw py::value_error("element: wanted float32, bfloat16 or float16, got '" + name + "'");
}

// `AmxProduct` of addresses, which are borrowed during the call only.
class Product {
  public:
    Product(Index length, const std::string& columns, int threads)
        : product_(length, checked_element(columns), threads), columns_(checked_element(columns)) {
        if (const char* reason = amx_unavailable()) throw py::value_error(std::string("AMX: ") + reason);
    }

    using RowAddresses = std::tuple<Address, Index, Address, Index>;  // data, stride, index, count

    void take_rows(const RowAddresses& rows, const std::string& element, Address scale) {
        product_.take_rows(make_rows(rows, checked_element(element)), at<const float>(scale));
    }

    void multiply(Index first, Index count, const RowAddresses& columns, Address met_rows, Address out,
                  Index out_stride) {
        product_.multiply(first, count, make_rows(columns, columns_), at<const RowRange>(met_rows), at<float>(out),
                          out_stride);
    }

  private:
    static Rows make_rows(const RowAddresses& rows, Element element) {
        const auto [data, stride, index, count] = rows;
        return {at<const void>(data), stride, at<const Index>(index), count, element};
    }

    AmxProduct product_;
    Element columns_;
};

void haversine(Address p, Index rows, Address q, Index columns, Address out, Index stride, int threads) {
    const Coordinates<float> gallery(at<const float>(q), columns);
    choose_kernels().haversine(at<const float>(p), rows, gallery.axes(), columns, {at<float>(out), stride}, threads);
}

void haversine_float64(Address p, Index rows, Address q, Index columns, Address out, Index stride, int threads) {
    const Coordinates<double> gallery(at<const double>(q), columns);
    choose_kernels().haversine_float64(at<const double>(p), rows, gallery.axes(), columns, {at<double>(out), stride},
                                       threads);
}

void rank_tile(Index first_row, Index rows, Index first_column, Index columns, Address scores, Index stride,
               Address best, Index k, int threads) {
    choose_kernels().ranking->rank_tile({first_row, rows, first_column, columns}, {at<const float>(scores), stride},
                                        at<std::uint64_t>(best), k, threads);
}

void read_ranking(Address best, Index rows, Index k, Address values, Address indices, int threads) {
    choose_kernels().ranking->read_ranking(at<std::uint64_t>(best), rows, k, at<float>(values), at<Index>(indices),
                                           threads);
}

void pair_distances(Index count, Address p, Address q, Address h, Address chord) {
    const Coordinates<float> second(at<const float>(q), count);
    choose_kernels().distances(count, at<const float>(p), second.axes(), at<float>(h), at<float>(chord));
}

}  // namespace
}  // namespace semivario

PYBIND11_MODULE(_native, m) {
    using semivario::Epilogue;
    using release = py::call_guard<py::gil_scoped_release>;
    m.doc() = "Fused pair arithmetic on the CPU, on raw addresses; see backends/native_epilogue.py and binned_native.py.";

    py::class_<Epilogue>(m, "Epilogue", "The arithmetic after the matrix products, for the tiles of one loss.")
        .def(py::init<const std::string&, const std::map<std::string, double>&,
                      const std::vector<semivario::StructureTuple>&, double, double, const std::string&, double, bool,
                      int, std::uintptr_t, std::uintptr_t, std::int64_t, std::uintptr_t, std::uintptr_t,
                      std::uintptr_t, std::uintptr_t>(),
             py::kw_only(), py::arg("policy_kind"), py::arg("policy"), py::arg("structures"), py::arg("nugget"),
             py::arg("psill"), py::arg("metric"), py::arg("scale"), py::arg("features"), py::arg("threads"),
             py::arg("p"), py::arg("q"), py::arg("gallery"), py::arg("inverse_y"), py::arg("image_v"),
             py::arg("inverse_u"), py::arg("targets"))
        .def_property_readonly("isa", &Epilogue::isa, "The instruction set in use.")
        .def("forward", &Epilogue::forward, release())
        .def("column_statistics", &Epilogue::column_statistics, release())
        .def("gradient", &Epilogue::gradient, release())
        .def("terms", &Epilogue::terms, release(), "rho, gamma, a, b, f of pairs from h, lag and d, for the tests.");

    using semivario::Binning;
    py::class_<Binning>(m, "Binning", "Sums over the pairs of tiles, per distance bin.")
        .def(py::init<std::uintptr_t, std::uintptr_t, std::int32_t, std::int32_t, std::int32_t, float,
                      std::int32_t, std::int64_t, int, std::uintptr_t, std::uintptr_t, std::uintptr_t, std::int64_t,
                      std::uintptr_t>(),
             py::kw_only(), py::arg("edges"), py::arg("cells"), py::arg("cell_count"), py::arg("first_cell"),
             py::arg("shift"), py::arg("offset"), py::arg("bins"), py::arg("blocks"), py::arg("threads"),
             py::arg("sums"), py::arg("quarter_sums"), py::arg("histogram"), py::arg("histogram_cells"),
             py::arg("duplicates"))
        .def("add", &Binning::add, release())
        .def_property_readonly_static("units", [](const py::object&) {
            return std::vector<double>{1.0, semivario::H_UNITS, semivario::D_UNITS, semivario::D2_UNITS};
        });

    using semivario::Product;
    py::class_<Product>(m, "AmxProduct", "Products of a row block with columns, on AMX tiles.")
        .def(py::init<std::int64_t, const std::string&, int>(), py::kw_only(), py::arg("length"), py::arg("columns"),
             py::arg("threads"))
        .def("take_rows", &Product::take_rows, release())
        .def("multiply", &Product::multiply, release());
    m.def("instruction_set", [] { return semivario::choose_kernels().name; }, "The best one, or SEMIVARIO_ISA.");
    m.def("amx_unavailable", [] { return semivario::amx_unavailable(); }, "Why AMX cannot be used, or None.");

    m.def("haversine", &semivario::haversine, release(), "Great-circle distances in km, (rows, columns).");
    m.def("haversine_float64", &semivario::haversine_float64, release(), "The same in float64.");
    m.def("rank_tile", &semivario::rank_tile, release(), "Adds a tile of scores to the best k of its rows.");
    m.def("read_ranking", &semivario::read_ranking, release(), "Values and indices of the best k of every row.");
    m.def("pair_distances", &semivario::pair_distances, release(),
          "h and chord in km of pairs (p_k, q_k), for the tests.");
}
