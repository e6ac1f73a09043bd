// The engine, with the GIL released wherever it computes or waits.
#include "engine/engine.h"

#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <optional>

#include "backends/cpu/transformer.h"
#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "bindings/signals.h"

namespace py = pybind11;

namespace pyllama2c {

namespace {

static_assert(BlockManager::kTokens == kBlockTokens);

Clock::time_point after(double seconds) {
    // Beyond a century it is never; the clock would overflow.
    if (!(seconds < 3e9)) return Clock::time_point::max();
    return Clock::now() +
           std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

std::unique_ptr<Engine> make_engine(const std::shared_ptr<Weights>& weights, KvType kv_type,
                                    int n_threads, int max_sequences, int prefill_chunk,
                                    int n_blocks, int64_t max_waiting, bool preallocate,
                                    int max_cached) {
    const ReleaseGil release;
    const int max_rows = max_sequences + prefill_chunk;
    try {
        auto backend =
            std::make_unique<CpuTransformer>(weights, kv_type, n_threads, max_rows, n_blocks);
        if (preallocate) backend->take_memory();
        return std::make_unique<Engine>(std::move(backend), max_sequences, prefill_chunk,
                                        max_waiting, max_cached);
    } catch (const CapacityError& error) {
        throw CapacityError(text(error.what(), " for an engine: ask for less kv_memory, which is ",
                                 n_blocks * KvCache::bytes_per_block(weights->config(), kv_type),
                                 " bytes, or fewer max_sequences"));
    }
}

// An id, or news, that were returned would be lost where a signal's handler raises as the call
// ends: they are appended to a list that the caller has.
void submit(Engine& engine, std::vector<int32_t> tokens, size_t n_prompt,
            const SamplingParams& params, py::typing::List<py::int_> ids, int priority,
            std::optional<double> deadline, int n_keep, int max_unread, bool announce) {
    RequestOptions options;
    if (deadline) options.deadline = after(*deadline);
    options.n_keep = n_keep;
    options.max_unread = max_unread;
    options.announce = announce;
    uint64_t id = 0;
    {
        const ReleaseGil release;
        id = engine.submit(std::move(tokens), n_prompt, params, priority, options);
    }
    ids.append(id);
}

// Calls one of the engine's functions that compute for some seconds. Short ones do not ask for
// signals: that takes the GIL, and to get it may take longer than they do.
template <typename Function>
auto within(std::optional<double> budget, Function function) {
    const Clock::time_point deadline = budget ? after(*budget) : Clock::time_point::max();
    ReleaseGil released;
    if (budget && *budget < 0.1) return function(deadline, [] {});
    return function(deadline, Engine::Interrupted(SignalCheck(released)));
}

// The state of a random stream after some more numbers were drawn from it.
uint64_t advance_rng(uint64_t state, uint64_t draws) {
    Rng rng(state);
    for (uint64_t i = 0; i < draws; ++i) rng.next_float();
    return rng.state();
}

py::dict stats_dict(const EngineStats& s) {
    using namespace py::literals;
    const auto counts = [](const Histogram& h) { return py::cast(h.counts); };
    return py::dict("running"_a = s.running, "waiting"_a = s.waiting, "blocks"_a = s.blocks,
                    "blocks_held"_a = s.blocks_held, "blocks_cached"_a = s.blocks_cached,
                    "requests"_a = s.requests, "finished"_a = s.finished,
                    "cancelled"_a = s.cancelled, "expired"_a = s.expired, "refused"_a = s.refused,
                    "preempted"_a = s.preempted, "prompt_tokens"_a = s.prompt_tokens,
                    "cached_tokens"_a = s.cached_tokens, "generated_tokens"_a = s.generated_tokens,
                    "passes"_a = s.passes, "busy_seconds"_a = s.busy_seconds,
                    "first_token"_a = counts(s.first_token),
                    "inter_token"_a = counts(s.inter_token));
}

}  // namespace

void register_engine(py::module_& m) {
    py::enum_<FinishReason>(m, "FinishReason")
        .value("NONE", FinishReason::kNone)
        .value("STOP", FinishReason::kStop)
        .value("LENGTH", FinishReason::kLength)
        .value("DEADLINE", FinishReason::kDeadline)
        .value("CANCELLED", FinishReason::kCancelled);

    py::class_<SamplingParams>(m, "SamplingParams", "Validated by pyllama2c.SamplingParams.")
        .def(py::init<>())
        .def_readwrite("temperature", &SamplingParams::temperature)
        .def_readwrite("top_p", &SamplingParams::top_p)
        .def_readwrite("min_p", &SamplingParams::min_p)
        .def_readwrite("top_k", &SamplingParams::top_k)
        .def_readwrite("repetition_penalty", &SamplingParams::repetition_penalty)
        .def_readwrite("presence_penalty", &SamplingParams::presence_penalty)
        .def_readwrite("frequency_penalty", &SamplingParams::frequency_penalty)
        .def_readwrite("logit_bias", &SamplingParams::logit_bias)
        .def_readwrite("max_tokens", &SamplingParams::max_tokens)
        .def_readwrite("stop_token_ids", &SamplingParams::stop_token_ids, "Ascending.")
        .def_readwrite("rng_state", &SamplingParams::rng_state);

    py::class_<Progress>(m, "Progress", "What happened to a request since it was last looked at.")
        .def_readonly("id", &Progress::id)
        .def_readonly("tokens", &Progress::tokens)
        .def_readonly("finish", &Progress::finish)
        .def_property_readonly(
            "finished", [](const Progress& p) { return p.finish != FinishReason::kNone; },
            "Whether `finish` is not NONE.")
        .def_readonly("cached_tokens", &Progress::cached_tokens)
        .def_readonly("prefill_seconds", &Progress::prefill_seconds)
        .def_readonly("decode_seconds", &Progress::decode_seconds);

    py::class_<Engine>(m, "Engine", "Continuous batching over one model.")
        .def(py::init(&make_engine), py::arg("weights"), py::arg("kv_type"), py::arg("n_threads"),
             py::arg("max_sequences"), py::arg("prefill_chunk"), py::arg("n_blocks"),
             py::arg("max_waiting") = -1, py::arg("preallocate") = false,
             py::arg("max_cached") = INT_MAX,
             "max_cached: free blocks to be found, beyond which they are used before new ones.")
        .def("submit", &submit, py::arg("tokens"), py::arg("n_prompt"), py::arg("params"),
             py::arg("ids"), py::arg("priority") = 0, py::arg("deadline") = std::nullopt,
             py::arg("n_keep") = -1, py::arg("max_unread") = 0, py::arg("announce") = false,
             "Appends the request's id to `ids`. deadline: seconds from now. n_keep: -1, or the\n"
             "context slides and keeps so many.")
        .def("cancel", &Engine::cancel, py::arg("id"), py::arg("complete") = false,
             py::call_guard<ReleaseGil>(), "complete: the text is, by what the caller knows.")
        .def(
            "wait",
            [](Engine& engine, const std::vector<uint64_t>& ids, bool until_finished) {
                ReleaseGil released;
                return engine.wait(ids, until_finished, SignalCheck(released));
            },
            py::arg("ids"), py::arg("until_finished") = false)
        .def(
            "step",
            [](Engine& engine, std::optional<double> budget, py::typing::List<Progress> news) {
                for (Progress& progress :
                     within(budget, [&](auto deadline, const Engine::Interrupted& interrupted) {
                         return engine.step(deadline, interrupted);
                     })) {
                    news.append(std::move(progress));
                }
            },
            py::arg("budget"), py::arg("news"),
            "Appends news of the announced requests, after at most `budget` seconds.")
        .def(
            "compute",
            [](Engine& engine, double at_least) {
                const ReleaseGil release;
                return engine.compute(after(at_least), [] {});
            },
            py::arg("at_least"),
            "Ids of the announced requests that have news, after whole passes for so many "
            "seconds,\n"
            "or up to news that are to be told at once.")
        .def("collect", &Engine::collect, py::arg("ids"), py::call_guard<ReleaseGil>())
        .def("has_work", &Engine::has_work, py::call_guard<ReleaseGil>())
        .def("busy", &Engine::busy)
        .def("stats",
             [](Engine& engine) {
                 EngineStats stats;
                 {
                     const ReleaseGil release;
                     stats = engine.stats();
                 }
                 return stats_dict(stats);
             })
        .def("consistent", &Engine::consistent, py::call_guard<ReleaseGil>(),
             "Whether no block of the cache is lost or held twice.")
        .def_property_readonly("max_length", &Engine::max_length);

    m.attr("BLOCK_TOKENS") = kBlockTokens;
    m.attr("HISTOGRAM_FIRST_SECONDS") = Histogram::kFirst;
    m.attr("HISTOGRAM_PER_OCTAVE") = Histogram::kPerOctave;

    m.def(
        "leak", [](py::object object) { object.release(); }, py::arg("object"),
        "Never destroy an object. In a forked process, one whose locks others have taken along.");
    m.def("advance_rng", &advance_rng, py::arg("state"), py::arg("draws"));
}

}  // namespace pyllama2c
