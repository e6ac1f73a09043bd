// The engine, with the GIL released wherever it computes or waits.
#include "engine/engine.h"

#include <pybind11/stl.h>

#include "backends/cpu/transformer.h"
#include "bindings/bindings.h"
#include "bindings/signals.h"

namespace py = pybind11;

namespace pyllama2c {

namespace {

static_assert(BlockManager::kTokens == kBlockTokens);

std::unique_ptr<Engine> make_engine(const std::shared_ptr<Weights>& weights, KvType kv_type,
                                    int n_threads, int max_sequences, int prefill_chunk,
                                    int n_blocks) {
    const int max_rows = max_sequences + prefill_chunk;
    auto backend =
        std::make_unique<CpuTransformer>(weights, kv_type, n_threads, max_rows, n_blocks);
    return std::make_unique<Engine>(std::move(backend), max_sequences, prefill_chunk);
}

}  // namespace

void register_engine(py::module_& m) {
    py::enum_<FinishReason>(m, "FinishReason")
        .value("NONE", FinishReason::kNone)
        .value("STOP", FinishReason::kStop)
        .value("LENGTH", FinishReason::kLength)
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
        .def_readonly("rng_state", &Progress::rng_state)
        .def_readonly("cached_tokens", &Progress::cached_tokens)
        .def_readonly("prefill_seconds", &Progress::prefill_seconds)
        .def_readonly("decode_seconds", &Progress::decode_seconds);

    py::class_<Engine>(m, "Engine", "Continuous batching over one model.")
        .def(py::init(&make_engine), py::arg("weights"), py::arg("kv_type"), py::arg("n_threads"),
             py::arg("max_sequences"), py::arg("prefill_chunk"), py::arg("n_blocks"))
        .def("submit", &Engine::submit, py::arg("tokens"), py::arg("n_prompt"), py::arg("params"),
             py::arg("priority") = 0, py::call_guard<py::gil_scoped_release>())
        .def("cancel", &Engine::cancel, py::arg("id"), py::call_guard<py::gil_scoped_release>())
        .def(
            "wait",
            [](Engine& engine, const std::vector<uint64_t>& ids, bool until_finished) {
                const py::gil_scoped_release release;
                return engine.wait(ids, until_finished, SignalCheck());
            },
            py::arg("ids"), py::arg("until_finished") = false);
}

}  // namespace pyllama2c
