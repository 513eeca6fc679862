// llama.cpp's side of the benchmark, linked to the libllama that setup.sh builds.
//   peer version                                       the library's version and what it was built for
//   peer quantize F32.gguf OUT.gguf f16|q8_0|q4_0      as llama-quantize does without options
//   peer bench MODEL.gguf THREADS PROMPT GENERATE WARM_UPS     JSON with the keys of `compressor bench --json`
//   peer greedy MODEL.gguf THREADS COUNT ID…           the ids that follow, the likeliest each time
// The context is no longer than needed, as llama-bench's is; the prompt is one batch; everything else is the library's default.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "ggml.h"
#include "llama.h"

#include "common.hpp"

namespace {

double milliseconds(std::chrono::steady_clock::time_point since) {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - since).count();
}

// Not getrusage's figure: that one begins with the peak of the process that started this one.
long long peak_memory_bytes() {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
        if (line.rfind("VmHWM:", 0) == 0) {
            return std::atoll(line.c_str() + 6) * 1024;
        }
    }
    fail("/proc/self/status does not tell VmHWM");
}

// A loaded model with room for `tokens` positions.
struct Loaded {
    llama_model * model;
    llama_context * context;
    int vocab_size;

    Loaded(const char * path, int threads, int prompt_tokens, int tokens) {
        model = llama_model_load_from_file(path, llama_model_default_params());
        if (model == nullptr) {
            fail(std::string(path) + ": llama.cpp could not load it");
        }
        llama_context_params params = llama_context_default_params();
        params.n_ctx = static_cast<uint32_t>(tokens);
        params.n_batch = params.n_ubatch = static_cast<uint32_t>(std::max(prompt_tokens, 512));
        params.n_threads = params.n_threads_batch = threads;
        context = llama_init_from_model(model, params);
        if (context == nullptr) {
            fail(std::string(path) + ": llama.cpp could not make a context of " + std::to_string(tokens) + " tokens");
        }
        vocab_size = llama_vocab_n_tokens(llama_model_get_vocab(model));
    }

    // Appends `tokens`; logits of the last alone.
    void forward(std::vector<llama_token> & tokens) {
        const int code = llama_decode(context, llama_batch_get_one(tokens.data(), static_cast<int32_t>(tokens.size())));
        if (code != 0) {
            fail("llama_decode ended with " + std::to_string(code));
        }
        llama_synchronize(context);
    }

    // The likeliest token after the last one.
    llama_token largest() {
        const float * logits = llama_get_logits_ith(context, -1);
        return static_cast<llama_token>(std::max_element(logits, logits + vocab_size) - logits);
    }
};

int version() {
    std::printf("ggml %s\n%s\n", ggml_version(), llama_print_system_info());
    return 0;
}

int quantize(const char * from, const char * to, const std::string & type) {
    llama_model_quantize_params params = llama_model_quantize_default_params();
    if (type == "f16") {
        params.ftype = LLAMA_FTYPE_MOSTLY_F16;
    } else if (type == "q8_0") {
        params.ftype = LLAMA_FTYPE_MOSTLY_Q8_0;
    } else if (type == "q4_0") {
        params.ftype = LLAMA_FTYPE_MOSTLY_Q4_0;
    } else {
        fail("type is " + type + ", must be f16, q8_0 or q4_0");
    }
    if (llama_model_quantize(from, to, &params) != 0) {
        fail(std::string(from) + ": llama.cpp could not quantize it to " + type);
    }
    return 0;
}

int bench(const char * path, int threads, int prompt_tokens, int generated, int warm_ups) {
    auto started = std::chrono::steady_clock::now();
    Loaded loaded(path, threads, prompt_tokens, prompt_tokens + generated);
    const double load = milliseconds(started);
    // The prompt of `compressor bench`.
    std::vector<llama_token> prompt(static_cast<size_t>(prompt_tokens));
    for (int index = 0; index < prompt_tokens; ++index) {
        prompt[static_cast<size_t>(index)] = static_cast<llama_token>(static_cast<int64_t>(index) * 7919 % loaded.vocab_size);
    }
    for (int pass = 0; pass < warm_ups; ++pass) {
        loaded.forward(prompt);
        llama_memory_clear(llama_get_memory(loaded.context), true);
    }
    started = std::chrono::steady_clock::now();
    loaded.forward(prompt);
    std::vector<llama_token> next = {loaded.largest()};
    const double first_token = milliseconds(started);
    double generating = 0.0;
    for (int index = 0; index < generated; ++index) {
        started = std::chrono::steady_clock::now();
        loaded.forward(next);
        next[0] = loaded.largest();
        generating += milliseconds(started);
    }
    std::printf(
        "{\"load_milliseconds\":%.3f,\"prompt_tokens\":%d,\"first_token_milliseconds\":%.3f,\"prompt_tokens_per_second\":%.3f,"
        "\"generate_tokens_per_second\":%.3f,\"peak_memory_bytes\":%lld}\n",
        load, prompt_tokens, first_token, 1000.0 * prompt_tokens / first_token, 1000.0 * generated / generating,
        peak_memory_bytes());
    return 0;
}

int greedy(const char * path, int threads, int count, std::vector<llama_token> tokens) {
    const int prompt = static_cast<int>(tokens.size());
    Loaded loaded(path, threads, prompt, prompt + count);
    for (int index = 0; index < count; ++index) {
        loaded.forward(tokens);
        tokens = {loaded.largest()};
        std::printf(index == 0 ? "%d" : " %d", tokens[0]);
    }
    std::printf("\n");
    return 0;
}

}  // namespace

int main(int count, char ** arguments) {
    const std::string command = count > 1 ? arguments[1] : "";
    begin("peer");
    if (command == "version" && count == 2) {
        return version();
    }
    if (command == "quantize" && count == 5) {
        return quantize(arguments[2], arguments[3], arguments[4]);
    }
    if (command == "bench" && count == 7) {
        return bench(arguments[2], number("THREADS", arguments[3], 1), number("PROMPT", arguments[4], 1),
                     number("GENERATE", arguments[5], 1), number("WARM_UPS", arguments[6], 0));
    }
    if (command == "greedy" && count > 5) {
        std::vector<llama_token> tokens;
        for (int index = 5; index < count; ++index) {
            tokens.push_back(number("ID", arguments[index], 0));
        }
        return greedy(arguments[2], number("THREADS", arguments[3], 1), number("COUNT", arguments[4], 1), std::move(tokens));
    }
    fail("want version, quantize, bench or greedy with what the head of peer.cpp says");
}
