// vjepa_fast.masks._sampler: arguments checked, the GIL released, numpy arrays in and out.
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

// What the sampler's memory safety rests on. masks/specs.py and masks/sampler.py check the same and
// more, in sentences for users.
void require(bool holds, const char* expected) {
    if (!holds) throw std::invalid_argument(std::string("the mask sampler expected ") + expected);
}

template <typename Value>
Value one_of(const std::map<std::string, Value>& values, const std::string& name) {
    const auto found = values.find(name);
    require(found != values.end(), "a name that it knows");
    return found->second;
}

vjepa::Strategy read_strategy(const py::dict& fields) {
    const auto range = [&](const char* name) {
        const auto [low, high] = fields[name].cast<std::pair<double, double>>();
        return vjepa::Range{low, high};
    };
    static const std::map<std::string, vjepa::Kind> kinds = {{"blocks", vjepa::Kind::kBlocks},
                                                             {"tubes", vjepa::Kind::kTubes},
                                                             {"tokens", vjepa::Kind::kTokens}};
    vjepa::Strategy strategy{};
    strategy.kind = one_of(kinds, fields["kind"].cast<std::string>());
    strategy.part = fields["part"].cast<uint32_t>();
    strategy.context_frames = fields["context_frames"].cast<int64_t>();
    strategy.max_keep = fields["max_keep"].cast<std::optional<int64_t>>();
    if (strategy.kind == vjepa::Kind::kBlocks) {
        strategy.num_blocks = fields["num_blocks"].cast<int64_t>();
        strategy.spatial_scale = range("spatial_scale");
        strategy.temporal_scale = range("temporal_scale");
        strategy.aspect_ratio = range("aspect_ratio");
    } else {
        strategy.num_kept = fields["num_kept"].cast<int64_t>();
    }
    return strategy;
}

void check(const vjepa::Strategy& strategy, const vjepa::Size& grid) {
    require(strategy.part < 1 << 24, "parts below 2**24");
    require(strategy.max_keep.value_or(1) >= 1, "a max_keep of at least 1");
    require(1 <= strategy.context_frames && strategy.context_frames <= grid[0],
            "context frames within the grid");
    if (strategy.kind == vjepa::Kind::kBlocks) {
        require(strategy.num_blocks >= 1, "at least one block per spec");
        for (const auto& range : {strategy.spatial_scale, strategy.temporal_scale}) {
            require(0 < range.low && range.low <= range.high && range.high <= 1,
                    "scales in (0, 1]");
        }
        const auto& aspect = strategy.aspect_ratio;
        require(0x1p-31 <= aspect.low && aspect.low <= aspect.high && aspect.high <= 0x1p31,
                "aspect ratios in 2**-31 .. 2**31");
    } else {
        const bool tubes = strategy.kind == vjepa::Kind::kTubes;
        const int64_t count = grid[1] * grid[2] * (tubes ? 1 : grid[0]);
        require(1 <= strategy.num_kept && strategy.num_kept < count,
                "some context and some target");
        require(strategy.context_frames == grid[0], "context in every frame");
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
        const auto [cumulative, choices] = item.cast<std::pair<std::vector<double>, py::list>>();
        require(!choices.empty() && choices.size() == cumulative.size(), "a share per choice");
        vjepa::Spec spec{{}, cumulative};
        for (const auto& fields : choices) {
            spec.choices.push_back(read_strategy(fields.cast<py::dict>()));
            check(spec.choices.back(), grid);
        }
        settings.specs.push_back(std::move(spec));
    }
    require(!settings.specs.empty(), "at least one spec");
    return vjepa::MaskSampler(std::move(settings));
}

const vjepa::Size* read_sizes(const vjepa::MaskSampler& sampler, const Int64Array& sizes) {
    require(sizes.ndim() == 2 && sizes.shape(0) == sampler.num_strategies() && sizes.shape(1) == 3,
            "one block size per strategy");
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

template <typename Token>
py::array_t<Token> find_room(const py::object& given, int64_t rows) {
    if (given.is_none()) return py::array_t<Token>(rows);
    require(py::isinstance<py::array_t<Token, py::array::c_style>>(given),
            "two arrays of one type, int32 or int64, without gaps");
    const auto room = py::reinterpret_borrow<py::array_t<Token>>(given);
    require(room.ndim() == 1 && room.writeable(), "flat writeable arrays");
    if (room.shape(0) < rows) {
        throw std::invalid_argument("found mask buffers with room for " +
                                    std::to_string(room.shape(0)) + " tokens, expected " +
                                    std::to_string(rows) + ", give larger ones");
    }
    return room;
}

template <typename Token>
std::pair<py::array, py::array> write(const vjepa::MaskSampler& sampler,
                                      vjepa::Workspace& workspace, const py::object& context_room,
                                      const py::object& target_room) {
    auto context = find_room<Token>(context_room, workspace.context_offsets.back());
    auto target = find_room<Token>(target_room, workspace.target_offsets.back());
    Token* contexts = context.mutable_data();
    Token* targets = target.mutable_data();
    {
        py::gil_scoped_release release;
        sampler.write(workspace, contexts, targets);
    }
    return {context, target};
}

Int64Array matrix(const std::vector<int64_t>& values, py::ssize_t rows, py::ssize_t columns) {
    return Int64Array({rows, columns}, values.data());
}

py::array_t<int32_t> offsets(const std::vector<int64_t>& values) {
    py::array_t<int32_t> array(values.size());
    std::copy(values.begin(), values.end(), array.mutable_data());
    return array;
}

py::tuple sample(const vjepa::MaskSampler& sampler, int64_t step, const Int64Array& sample_ids,
                 const std::optional<Int64Array>& block_sizes, const py::object& context_room,
                 const py::object& target_room) {
    require(step >= 0, "a step of at least 0");
    require(sample_ids.ndim() == 1 && sample_ids.size() > 0, "a list of sample ids");
    const int64_t batch = sample_ids.size();
    const auto [least, most] = std::minmax_element(sample_ids.data(), sample_ids.data() + batch);
    if (*least < 0 || *most >= int64_t{1} << 62) {
        throw std::invalid_argument("found sample ids in " + std::to_string(*least) + " .. " +
                                    std::to_string(*most) +
                                    ", expected 0 .. 2**62-1, give step * global_batch + position");
    }
    const vjepa::Size* sizes = block_sizes ? read_sizes(sampler, *block_sizes) : nullptr;

    static thread_local vjepa::Workspace workspace;
    {
        py::gil_scoped_release release;
        sampler.draw(step, sample_ids.data(), batch, sizes, workspace);
    }
    const bool narrow = py::isinstance<py::array_t<int32_t>>(context_room);
    const auto [context, target] =
        narrow ? write<int32_t>(sampler, workspace, context_room, target_room)
               : write<int64_t>(sampler, workspace, context_room, target_room);
    const py::ssize_t num_specs = sampler.settings().specs.size();
    Int64Array used_sizes({static_cast<py::ssize_t>(sampler.num_strategies()), py::ssize_t{3}});
    std::copy_n(workspace.block_sizes.data()->data(), used_sizes.size(), used_sizes.mutable_data());
    return py::make_tuple(context, matrix(workspace.context_seqlens, num_specs, batch),
                          offsets(workspace.context_offsets), target,
                          matrix(workspace.target_seqlens, num_specs, batch),
                          offsets(workspace.target_offsets), used_sizes);
}

}  // namespace

PYBIND11_MODULE(_sampler, module) {
    module.doc() = "The mask sampler in C++; use vjepa_fast.masks.MaskSampler.";
    py::class_<vjepa::MaskSampler>(module, "Sampler")
        .def(py::init(&make_sampler), py::kw_only(), py::arg("specs"), py::arg("grid"),
             py::arg("seed"), py::arg("truncate"), py::arg("truncate_group"), py::arg("round_to"),
             py::arg("complement"), py::arg("num_threads"))
        .def("sample", &sample, py::arg("step"), py::arg("sample_ids"), py::arg("block_sizes"),
             py::arg("context_room"), py::arg("target_room"),
             "Returns context tokens, lengths [M, B] and offsets, the same of targets, and the "
             "block sizes [strategies, 3]. Tokens go to the head of the room given, or to int64 "
             "arrays of their size.");

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
