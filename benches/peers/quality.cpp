// llama.cpp's side of the table of quality by bytes, linked to the libllama that setup.sh builds.
//   quality importance MODEL.gguf TEXT TOKENS WINDOW THREADS OUT     mean square of each input of each matrix, as llama-imatrix has it
//   quality quantize F32.gguf OUT.gguf TYPE IMPORTANCE THREADS       TYPE as llama-quantize calls it: Q4_K_M
//   quality divergence REFERENCE.gguf TEXT WINDOWS WINDOW FIRST_SCORED THREADS MODEL.gguf…
//       for the reference and each model a line of JSON: perplexity, mean KL(reference ‖ model), part of equal largest logits
// Windows follow each other without overlap, each from position 0, without BOS.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "ggml.h"
#include "llama.h"

#include "common.hpp"

namespace {

// Sums of squares of what each matrix multiplies.
struct Importance {
    struct Sums {
        std::vector<double> squares;
        long long vectors = 0;
    };
    std::map<std::string, Sums> matrices;

    // The scheduler asks whether a tensor is wanted, then shows it.
    static bool see(ggml_tensor * tensor, bool ask, void * self) {
        const ggml_tensor * weights = tensor->src[0];
        const bool is_wanted = tensor->op == GGML_OP_MUL_MAT && std::strncmp(weights->name, "blk.", 4) == 0;
        if (ask) {
            return is_wanted;
        }
        if (is_wanted) {
            static_cast<Importance *>(self)->add(weights->name, tensor->src[1]);
        }
        return true;
    }

    void add(const char * name, const ggml_tensor * inputs) {
        if (inputs->type != GGML_TYPE_F32 || inputs->nb[0] != sizeof(float)) {
            fail(std::string(name) + ": its input is not in f32");
        }
        Sums & sums = matrices[name];
        const size_t columns = static_cast<size_t>(inputs->ne[0]);
        sums.squares.resize(columns);
        for (int64_t row = 0; row < inputs->ne[1]; ++row) {
            const float * x = reinterpret_cast<const float *>(static_cast<const char *>(inputs->data) + row * inputs->nb[1]);
            for (size_t column = 0; column < columns; ++column) {
                sums.squares[column] += static_cast<double>(x[column]) * x[column];
            }
        }
        sums.vectors += inputs->ne[1];
    }
};

struct Loaded {
    llama_model * model;
    llama_context * context;
    int vocab_size;

    Loaded(const char * path, int threads, int window, Importance * importance = nullptr) {
        model = llama_model_load_from_file(path, llama_model_default_params());
        if (model == nullptr) {
            fail(std::string(path) + ": llama.cpp could not load it");
        }
        llama_context_params params = llama_context_default_params();
        params.n_ctx = params.n_batch = params.n_ubatch = static_cast<uint32_t>(window);
        params.n_threads = params.n_threads_batch = threads;
        if (importance != nullptr) {
            params.cb_eval = Importance::see;
            params.cb_eval_user_data = importance;
        }
        context = llama_init_from_model(model, params);
        if (context == nullptr) {
            fail(std::string(path) + ": llama.cpp could not make a context of " + std::to_string(window) + " tokens");
        }
        vocab_size = llama_vocab_n_tokens(llama_model_get_vocab(model));
    }

    std::vector<llama_token> tokens_of(const char * path, size_t wanted) const {
        std::ifstream file(path, std::ios::binary);
        if (!file) {
            fail(std::string(path) + ": can't be read");
        }
        std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
        // Enough for the tokens wanted, and cut where a line ends.
        const size_t end = text.find('\n', std::min(text.size(), 16 * wanted));
        text.resize(end == std::string::npos ? text.size() : end);
        std::vector<llama_token> tokens(text.size() + 1);
        const int count = llama_tokenize(llama_model_get_vocab(model), text.data(), static_cast<int32_t>(text.size()), tokens.data(),
                                         static_cast<int32_t>(tokens.size()), false, false);
        if (count < 0 || static_cast<size_t>(count) < wanted) {
            fail(std::string(path) + " has " + std::to_string(count) + " tokens, " + std::to_string(wanted) + " are wanted");
        }
        tokens.resize(wanted);
        return tokens;
    }

    // The logits at every place from `first` on.
    void forward(const llama_token * tokens, int count, int first) {
        llama_memory_clear(llama_get_memory(context), true);
        llama_batch batch = llama_batch_init(count, 0, 1);
        batch.n_tokens = count;
        for (int at = 0; at < count; ++at) {
            batch.token[at] = tokens[at];
            batch.pos[at] = at;
            batch.n_seq_id[at] = 1;
            batch.seq_id[at][0] = 0;
            batch.logits[at] = at >= first;
        }
        const int code = llama_decode(context, batch);
        llama_batch_free(batch);
        if (code != 0) {
            fail("llama_decode ended with " + std::to_string(code));
        }
        llama_synchronize(context);
    }
};

int importance(const char * path, const char * text, int tokens, int window, int threads, const char * out) {
    Importance found;
    Loaded loaded(path, threads, window, &found);
    const int whole = (tokens + window - 1) / window * window;
    const std::vector<llama_token> ids = loaded.tokens_of(text, static_cast<size_t>(whole));
    for (int first = 0; first < whole; first += window) {
        loaded.forward(ids.data() + first, window, window - 1);
    }
    if (found.matrices.empty()) {
        fail("no matrix was seen to multiply anything");
    }
    std::ofstream file(out);
    file.precision(9);
    for (const auto & [name, sums] : found.matrices) {
        file << name << ' ' << sums.squares.size();
        for (const double square : sums.squares) {
            file << ' ' << square / static_cast<double>(sums.vectors);
        }
        file << '\n';
    }
    if (!file.flush()) {
        fail(std::string(out) + ": can't be written");
    }
    return 0;
}

const std::map<std::string, llama_ftype> TYPES = {
    {"Q2_K", LLAMA_FTYPE_MOSTLY_Q2_K},     {"IQ2_M", LLAMA_FTYPE_MOSTLY_IQ2_M},   {"IQ3_XXS", LLAMA_FTYPE_MOSTLY_IQ3_XXS},
    {"Q3_K_M", LLAMA_FTYPE_MOSTLY_Q3_K_M}, {"IQ4_XS", LLAMA_FTYPE_MOSTLY_IQ4_XS}, {"IQ4_NL", LLAMA_FTYPE_MOSTLY_IQ4_NL},
    {"Q4_0", LLAMA_FTYPE_MOSTLY_Q4_0},     {"Q4_1", LLAMA_FTYPE_MOSTLY_Q4_1},     {"Q4_K_S", LLAMA_FTYPE_MOSTLY_Q4_K_S},
    {"Q4_K_M", LLAMA_FTYPE_MOSTLY_Q4_K_M}, {"Q5_0", LLAMA_FTYPE_MOSTLY_Q5_0},     {"Q5_1", LLAMA_FTYPE_MOSTLY_Q5_1},
    {"Q5_K_M", LLAMA_FTYPE_MOSTLY_Q5_K_M}, {"Q6_K", LLAMA_FTYPE_MOSTLY_Q6_K},     {"Q8_0", LLAMA_FTYPE_MOSTLY_Q8_0},
};

int quantize(const char * from, const char * to, const std::string & type, const char * importance, int threads) {
    const auto known = TYPES.find(type);
    if (known == TYPES.end()) {
        fail("type " + type + " is not known here");
    }
    std::ifstream file(importance);
    std::vector<std::string> names;
    std::vector<std::vector<float>> values;
    for (std::string name; file >> name;) {
        size_t count = 0;
        file >> count;
        std::vector<float> row(count);
        for (float & value : row) {
            file >> value;
        }
        names.push_back(name);
        values.push_back(std::move(row));
    }
    if (names.empty()) {
        fail(std::string(importance) + ": holds no matrix");
    }
    std::vector<llama_model_imatrix_data> data;
    for (size_t at = 0; at < names.size(); ++at) {
        data.push_back({names[at].c_str(), values[at].data(), values[at].size()});
    }
    data.push_back({nullptr, nullptr, 0});
    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype = known->second;
    params.nthread = threads;
    params.imatrix = data.data();
    if (llama_model_quantize(from, to, &params) != 0) {
        fail(std::string(from) + ": llama.cpp could not quantize it to " + type);
    }
    return 0;
}

// Of one model against the reference.
struct Figures {
    double loss = 0.0;
    double kl = 0.0;
    long long equal = 0;
};

double log_sum_exp(const float * logits, int count) {
    const float most = *std::max_element(logits, logits + count);
    double sum = 0.0;
    for (int at = 0; at < count; ++at) {
        sum += std::exp(logits[at] - most);
    }
    return most + std::log(sum);
}

int divergence(const char * reference_path, const char * text, int windows, int window, int first_scored, int threads,
               const std::vector<const char *> & paths) {
    Loaded reference(reference_path, threads, window);
    std::vector<std::unique_ptr<Loaded>> models;
    for (const char * path : paths) {
        models.push_back(std::make_unique<Loaded>(path, threads, window));
    }
    const std::vector<llama_token> tokens = reference.tokens_of(text, static_cast<size_t>(windows) * static_cast<size_t>(window));
    const int vocab_size = reference.vocab_size;
    std::vector<Figures> figures(models.size() + 1);
    long long scored = 0;
    for (int index = 0; index < windows; ++index) {
        const llama_token * here = tokens.data() + static_cast<size_t>(index) * static_cast<size_t>(window);
        reference.forward(here, window, first_scored - 1);
        for (size_t at = 0; at < models.size(); ++at) {
            models[at]->forward(here, window, first_scored - 1);
        }
        for (int place = first_scored - 1; place + 1 < window; ++place) {
            const float * p = llama_get_logits_ith(reference.context, place);
            const double p_norm = log_sum_exp(p, vocab_size);
            figures[0].loss += p_norm - p[here[place + 1]];
            ++scored;
            for (size_t at = 0; at < models.size(); ++at) {
                const float * q = llama_get_logits_ith(models[at]->context, place);
                const double q_norm = log_sum_exp(q, vocab_size);
                Figures & found = figures[at + 1];
                found.loss += q_norm - q[here[place + 1]];
                for (int token = 0; token < vocab_size; ++token) {
                    const double log_p = p[token] - p_norm;
                    found.kl += std::exp(log_p) * (log_p - (q[token] - q_norm));
                }
                found.equal += std::max_element(p, p + vocab_size) - p == std::max_element(q, q + vocab_size) - q;
            }
        }
    }
    const double count = static_cast<double>(scored);
    for (size_t at = 0; at < figures.size(); ++at) {
        const Figures & found = figures[at];
        std::printf("{\"perplexity\":%.6f,\"kl_mean\":%.8f,\"top1_agreement\":%.6f,\"tokens\":%lld}\n", std::exp(found.loss / count),
                    found.kl / count, at == 0 ? 1.0 : static_cast<double>(found.equal) / count, scored);
    }
    return 0;
}

}  // namespace

int main(int count, char ** arguments) {
    const std::string command = count > 1 ? arguments[1] : "";
    begin("quality");
    if (command == "importance" && count == 8) {
        return importance(arguments[2], arguments[3], number("TOKENS", arguments[4], 1), number("WINDOW", arguments[5], 2),
                          number("THREADS", arguments[6], 1), arguments[7]);
    }
    if (command == "quantize" && count == 7) {
        return quantize(arguments[2], arguments[3], arguments[4], arguments[5], number("THREADS", arguments[6], 1));
    }
    if (command == "divergence" && count > 7) {
        return divergence(arguments[2], arguments[3], number("WINDOWS", arguments[4], 1), number("WINDOW", arguments[5], 2),
                          number("FIRST_SCORED", arguments[6], 1), number("THREADS", arguments[7], 1),
                          std::vector<const char *>(arguments + 8, arguments + count));
    }
    fail("want importance, quantize or divergence with what the head of quality.cpp says");
}
