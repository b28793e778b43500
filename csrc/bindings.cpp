// vjepa_fast.masks._sampler: checks arguments, releases the GIL, takes and returns numpy arrays.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>

#include "mask_sampler.h"
#include "philox.h"

namespace py = pybind11;

namespace {

using Int64Array = py::array_t<int64_t, py::array::c_style>;

// Preconditions of memory safety. masks/specs.py and masks/sampler.py check these and more, with
// messages for users.
void require(bool holds, const char* expected) {
    if (!holds) throw std::invalid_argument(std::string("the mask sampler expected ") + expected);
}

template <typename Value>
Value one_of(const std::map<std::string, Value>& values, const std::string& name) {
    const auto found = values.find(name);
    require(found != values.end(), "a name that it knows");
    return found->second;
}

vjepa::Variant read_variant(const py::dict& fields) {
    const auto range = [&](const char* name) {
        const auto [low, high] = fields[name].cast<std::pair<double, double>>();
        return vjepa::Range{low, high};
    };
    static const std::map<std::string, vjepa::Kind> kinds = {{"blocks", vjepa::Kind::kBlocks},
                                                             {"tubes", vjepa::Kind::kTubes},
                                                             {"tokens", vjepa::Kind::kTokens}};
    vjepa::Variant variant{};
    variant.kind = one_of(kinds, fields["kind"].cast<std::string>());
    variant.part = fields["part"].cast<uint32_t>();
    variant.context_frames = fields["context_frames"].cast<int64_t>();
    variant.max_keep = fields["max_keep"].cast<std::optional<int64_t>>();
    if (variant.kind == vjepa::Kind::kBlocks) {
        variant.num_blocks = fields["num_blocks"].cast<int64_t>();
        variant.spatial_scale = range("spatial_scale");
        variant.temporal_scale = range("temporal_scale");
        variant.aspect_ratio = range("aspect_ratio");
    } else {
        variant.num_kept = fields["num_kept"].cast<int64_t>();
    }
    return variant;
}

void check(const vjepa::Variant& variant, const vjepa::Size& grid) {
    require(variant.part < 1 << 24, "parts below 2**24");
    require(variant.max_keep.value_or(1) >= 1, "a max_keep of at least 1");
    require(1 <= variant.context_frames && variant.context_frames <= grid[0],
            "context frames within the grid");
    if (variant.kind == vjepa::Kind::kBlocks) {
        require(variant.num_blocks >= 1, "at least one block per spec");
        for (const auto& range : {variant.spatial_scale, variant.temporal_scale}) {
            require(0 < range.low && range.low <= range.high && range.high <= 1,
                    "scales in (0, 1]");
        }
        const auto& aspect = variant.aspect_ratio;
        require(0x1p-31 <= aspect.low && aspect.low <= aspect.high && aspect.high <= 0x1p31,
                "aspect ratios in 2**-31 .. 2**31");
    } else {
        const bool tubes = variant.kind == vjepa::Kind::kTubes;
        const int64_t count = grid[1] * grid[2] * (tubes ? 1 : grid[0]);
        require(1 <= variant.num_kept && variant.num_kept < count, "some context and some target");
        require(variant.context_frames == grid[0], "context in every frame");
    }
}

vjepa::MaskSampler make_sampler(const py::sequence& specs, const vjepa::Size& grid, uint64_t seed,
                                const std::string& truncate, int64_t truncate_group,
                                int64_t round_to, const std::string& complement, int num_threads) {
    static const std::map<std::string, vjepa::Truncate> truncations = {
        {"none", vjepa::Truncate::kNone},
        {"batch", vjepa::Truncate::kBatch},
        {"batch-random", vjepa::Truncate::kBatchRandom}};
    static const std::map<std::string, vjepa::Complement> complements = {
        {"", vjepa::Complement::kNone},
        {"target", vjepa::Complement::kTarget},
        {"context", vjepa::Complement::kContext}};
    double num_tokens = 1;
    for (const int64_t side : grid) {
        require(side >= 1, "a grid of positive sides");
        num_tokens *= static_cast<double>(side);
    }
    require(num_tokens < 0x1p31, "a grid of under 2**31 tokens");
    require(truncate_group >= 1, "a truncation group of at least 1");
    require(round_to >= 1, "lengths rounded to a multiple of at least 1");
    vjepa::Settings settings{{},
                             grid,
                             seed,
                             one_of(truncations, truncate),
                             truncate_group,
                             round_to,
                             one_of(complements, complement),
                             num_threads};
    for (const auto& item : specs) {
        const auto [cumulative, variants] = item.cast<std::pair<std::vector<double>, py::list>>();
        require(!variants.empty() && variants.size() == cumulative.size(),
                "a probability per variant");
        vjepa::Spec spec{{}, cumulative};
        for (const auto& fields : variants) {
            spec.variants.push_back(read_variant(fields.cast<py::dict>()));
            check(spec.variants.back(), grid);
        }
        settings.specs.push_back(std::move(spec));
    }
    require(!settings.specs.empty(), "at least one spec");
    return vjepa::MaskSampler(std::move(settings));
}

const vjepa::Size* read_sizes(const vjepa::MaskSampler& sampler, const Int64Array& sizes) {
    require(sizes.ndim() == 2 && sizes.shape(0) == sampler.num_variants() && sizes.shape(1) == 3,
            "one block size per variant");
    for (py::ssize_t i = 0; i < sizes.shape(0); ++i) {
        for (int axis = 0; axis < 3; ++axis) {
            const int64_t side = sizes.at(i, axis);
            require(0 <= side && side <= sampler.settings().grid[axis],
                    "block sizes within the grid");
        }
    }
    static_assert(sizeof(vjepa::Size) == 3 * sizeof(int64_t));
    return reinterpret_cast<const vjepa::Size*>(sizes.data());
}

Int64Array matrix(const std::vector<int64_t>& values, py::ssize_t rows, py::ssize_t columns) {
    return Int64Array({rows, columns}, values.data());
}

py::array_t<int32_t> offsets(const std::vector<int64_t>& values) {
    py::array_t<int32_t> array(values.size());
    std::copy(values.begin(), values.end(), array.mutable_data());
    return array;
}

// Draws the masks into this thread's workspace.
vjepa::Workspace& draw(const vjepa::MaskSampler& sampler, int64_t step,
                       const Int64Array& sample_ids, const vjepa::Size* sizes) {
    require(step >= 0, "a step of at least 0");
    require(sample_ids.ndim() == 1 && sample_ids.size() > 0, "a list of sample ids");
    const int64_t batch = sample_ids.size();
    const auto [least, most] = std::minmax_element(sample_ids.data(), sample_ids.data() + batch);
    if (*least < 0 || *most >= int64_t{1} << 62) {
        throw std::invalid_argument("sample ids: found " + std::to_string(*least) + " .. " +
                                    std::to_string(*most) +
                                    ", expected 0 .. 2**62-1; give step * global_batch + position");
    }
    static thread_local vjepa::Workspace workspace;
    py::gil_scoped_release release;
    sampler.draw(step, sample_ids.data(), batch, sizes, workspace);
    return workspace;
}

// Context and target tokens of the masks last drawn.
std::pair<Int64Array, Int64Array> write(const vjepa::MaskSampler& sampler,
                                        vjepa::Workspace& workspace) {
    Int64Array context(workspace.context_offsets.back()), target(workspace.target_offsets.back());
    int64_t* contexts = context.mutable_data();
    int64_t* targets = target.mutable_data();
    {
        py::gil_scoped_release release;
        sampler.write(workspace, contexts, targets);
    }
    return {std::move(context), std::move(target)};
}

py::tuple sample(const vjepa::MaskSampler& sampler, int64_t step, const Int64Array& sample_ids,
                 const std::optional<Int64Array>& block_sizes) {
    const vjepa::Size* sizes = block_sizes ? read_sizes(sampler, *block_sizes) : nullptr;
    vjepa::Workspace& workspace = draw(sampler, step, sample_ids, sizes);
    const auto [context, target] = write(sampler, workspace);
    const py::ssize_t num_specs = sampler.settings().specs.size(), batch = sample_ids.size();
    Int64Array used_sizes({static_cast<py::ssize_t>(sampler.num_variants()), py::ssize_t{3}});
    std::copy_n(workspace.block_sizes.data()->data(), used_sizes.size(), used_sizes.mutable_data());
    return py::make_tuple(context, matrix(workspace.context_seqlens, num_specs, batch),
                          offsets(workspace.context_offsets), target,
                          matrix(workspace.target_seqlens, num_specs, batch),
                          offsets(workspace.target_offsets), used_sizes);
}

// Views of each spec's tokens, [batch, length].
py::list rectangles(const Int64Array& tokens, const std::vector<int64_t>& seqlens,
                    const std::vector<int64_t>& offsets, py::ssize_t batch) {
    py::list views;
    for (size_t first = 0; first < seqlens.size(); first += batch) {
        const py::ssize_t length = seqlens[first];
        views.append(Int64Array({batch, length}, tokens.data() + offsets[first], tokens));
    }
    return views;
}

py::tuple sample_rectangles(const vjepa::MaskSampler& sampler, int64_t step,
                            const Int64Array& sample_ids) {
    vjepa::Workspace& workspace = draw(sampler, step, sample_ids, nullptr);
    const py::ssize_t batch = sample_ids.size();
    vjepa::reject_unequal(workspace.context_seqlens, batch, "context");
    vjepa::reject_unequal(workspace.target_seqlens, batch, "target");
    const auto [context, target] = write(sampler, workspace);
    return py::make_tuple(
        rectangles(context, workspace.context_seqlens, workspace.context_offsets, batch),
        rectangles(target, workspace.target_seqlens, workspace.target_offsets, batch));
}

}  // namespace

PYBIND11_MODULE(_sampler, module) {
    module.doc() = "The mask sampler in C++; use vjepa_fast.masks.MaskSampler.";
    // What Python calls here; raise it, in vjepa_fast/masks/sampler.py too, with every change.
    module.attr("INTERFACE") = 1;
    py::class_<vjepa::MaskSampler>(module, "Sampler")
        .def(py::init(&make_sampler), py::kw_only(), py::arg("specs"), py::arg("grid"),
             py::arg("seed"), py::arg("truncate"), py::arg("truncate_group"), py::arg("round_to"),
             py::arg("complement"), py::arg("num_threads"))
        .def("sample", &sample, py::arg("step"), py::arg("sample_ids"), py::arg("block_sizes"),
             "Returns context tokens, lengths [M, B] and offsets, the same for targets, and the "
             "block sizes [variants, 3].")
        .def("sample_rectangles", &sample_rectangles, py::arg("step"), py::arg("sample_ids"),
             "Returns lists of context and of target tokens, [B, K] for each spec.");

    module.def("philox4x32", &vjepa::philox4x32, py::arg("counter"), py::arg("key"));
    py::class_<vjepa::PhiloxSequence>(module, "PhiloxSequence",
                                      "The C++ form of vjepa_fast.masks.philox.PhiloxSequence.")
        .def(py::init<uint64_t, uint32_t, uint64_t>(), py::arg("seed"), py::arg("stream"),
             py::arg("index"))
        .def("word", &vjepa::PhiloxSequence::word)
        .def("uniform", &vjepa::PhiloxSequence::uniform)
        .def("bounded", [](vjepa::PhiloxSequence& sequence, uint32_t bound) {
            require(bound > 0, "a bound of at least 1");
            return sequence.bounded(bound);
        });
}
