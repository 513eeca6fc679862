// What peer.cpp and quality.cpp share: failing with a message, reading arguments, starting llama.cpp.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

#include "llama.h"

// Stands before every message.
inline const char * program = "";

[[noreturn]] inline void fail(const std::string & what) {
    std::fprintf(stderr, "%s: %s\n", program, what.c_str());
    std::exit(2);
}

// A whole number of at least `least`.
inline int number(const char * name, const char * text, long least) {
    char * end = nullptr;
    const long value = std::strtol(text, &end, 10);
    if (end == text || *end != '\0' || value < least || value > 1000000) {
        fail(std::string(name) + " is " + text + ", must be a whole number from " + std::to_string(least));
    }
    return static_cast<int>(value);
}

// Progress and hints of the library are left out, its errors are not.
inline void log_errors(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR) {
        std::fputs(text, stderr);
    }
}

inline void begin(const char * name) {
    program = name;
    llama_log_set(log_errors, nullptr);
    llama_backend_init();
}
