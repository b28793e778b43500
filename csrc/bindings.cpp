// vjepa_fast.masks._sampler: arguments checked, the GIL released, numpy arrays out.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <stdexcept>
#include <utility>

#include "mask_sampler.h"
#include "philox.h"

namespace py = pybind11;

namespace {

vjepa::MultiBlock read_spec(const py::handle& spec) {
    const auto range = [&](const char* name) {
        const auto [low, high] = spec.attr(name).cast<std::pair<double, double>>();
        return vjepa::Range{low, high};
    };
    return {spec.attr("num_blocks").cast<int64_t>(),
            range("spatial_scale"),
            range("temporal_scale"),
            range("aspect_ratio"),
            spec.attr("max_temporal_keep").cast<double>(),
            spec.attr("max_keep").cast<std::optional<int64_t>>()};
}

void require(bool holds, const char* expected) {
    if (!holds) throw std::invalid_argument(std::string("the mask sampler expected ") + expected);
}

// What the sampler's memory safety rests on. masks/specs.py and masks/sampler.py check the same and
// more, in sentences for users.
void check(const vjepa::Request& request) {
    for (const int64_t side : request.grid) require(side >= 1, "a grid of positive sides");
    for (const auto& spec : request.specs) {
        require(spec.num_blocks >= 1, "at least one block per spec");
        require(spec.max_keep.value_or(1) >= 1, "a max_keep of at least 1");
        require(spec.max_temporal_keep > 0 && spec.max_temporal_keep <= 1,
                "a max_temporal_keep in (0, 1]");
        for (const auto& range : {spec.spatial_scale, spec.temporal_scale}) {
            require(0 < range.low && range.low <= range.high && range.high <= 1,
                    "scales in (0, 1]");
        }
        require(0 < spec.aspect_ratio.low && spec.aspect_ratio.low <= spec.aspect_ratio.high,
                "positive aspect ratios");
    }
    for (const int64_t id : request.sample_ids) require(id >= 0, "sample ids of at least 0");
    require(request.step >= 0, "a step of at least 0");
    require(request.truncate_group >= 0, "a truncation group of at least 0");
    require(request.block_sizes.empty() || request.block_sizes.size() == request.specs.size(),
            "one block size per spec");
    for (const auto& size : request.block_sizes) {
        for (int axis = 0; axis < 3; ++axis) {
            require(0 <= size[axis] && size[axis] <= request.grid[axis],
                    "block sizes within the grid");
        }
    }
}

// Hands a vector's memory to numpy without a copy.
py::array_t<int64_t> to_numpy(std::vector<int64_t>&& values, std::vector<py::ssize_t> shape) {
    auto owned = std::make_unique<std::vector<int64_t>>(std::move(values));
    const int64_t* data = owned->data();
    py::capsule owner(owned.get(), [](void* p) { delete static_cast<std::vector<int64_t>*>(p); });
    owned.release();
    return py::array_t<int64_t>(std::move(shape), data, owner);
}

py::tuple sample(const py::sequence& specs, const vjepa::Size& grid, uint64_t seed, int64_t step,
                 std::vector<int64_t> sample_ids, int64_t truncate_group,
                 std::vector<vjepa::Size> block_sizes, int num_threads) {
    vjepa::Request request{
        {},         grid, seed, step, std::move(sample_ids), truncate_group, std::move(block_sizes),
        num_threads};
    for (const auto& spec : specs) request.specs.push_back(read_spec(spec));
    check(request);
    vjepa::Masks masks;
    {
        py::gil_scoped_release release;
        masks = vjepa::sample(request);
    }
    const py::ssize_t num_specs = request.specs.size(), batch = request.sample_ids.size();
    const py::ssize_t context_rows = masks.context_tokens.size();
    const py::ssize_t target_rows = masks.target_tokens.size();
    std::vector<int64_t> sizes;
    for (const auto& size : masks.block_sizes) sizes.insert(sizes.end(), size.begin(), size.end());
    return py::make_tuple(to_numpy(std::move(masks.context_tokens), {context_rows}),
                          to_numpy(std::move(masks.context_seqlens), {num_specs, batch}),
                          to_numpy(std::move(masks.target_tokens), {target_rows}),
                          to_numpy(std::move(masks.target_seqlens), {num_specs, batch}),
                          to_numpy(std::move(sizes), {num_specs, 3}));
}

}  // namespace

PYBIND11_MODULE(_sampler, module) {
    module.doc() = "The mask sampler in C++; use vjepa_fast.masks.MaskSampler.";
    module.def("sample", &sample, py::kw_only(), py::arg("specs"), py::arg("grid"), py::arg("seed"),
               py::arg("step"), py::arg("sample_ids"), py::arg("truncate_group"),
               py::arg("block_sizes"), py::arg("num_threads"),
               "Returns int64 arrays: context tokens, context lengths [M, B], target tokens, "
               "target lengths [M, B], block sizes [M, 3].");
    module.def("philox4x32", &vjepa::philox4x32, py::arg("counter"), py::arg("key"));

    py::class_<vjepa::PhiloxSequence>(module, "PhiloxSequence",
                                      "The twin of vjepa_fast.masks.philox.PhiloxSequence.")
        .def(py::init<uint64_t, uint32_t, uint64_t>(), py::arg("seed"), py::arg("stream"),
             py::arg("index"))
        .def("word", &vjepa::PhiloxSequence::word)
        .def("uniform", &vjepa::PhiloxSequence::uniform)
        .def("bounded", [](vjepa::PhiloxSequence& sequence, uint32_t bound) {
            require(bound > 0, "a bound of at least 1");
            return sequence.bounded(bound);
        });
}
