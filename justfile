# What a contributor runs. `just` alone lists it.

_default:
    @just --list

# every test; those on real models say that they were skipped where COMPRESSOR_ASSETS is not set
test:
    cargo test --locked --release --workspace

# format and lints, as CI asks for them
lint:
    cargo fmt --all --check
    cargo clippy --locked --release --workspace --all-targets -- -D warnings

# the whole chain on generated data
quickstart:
    cargo run --locked --release -- run recipes/quickstart.toml

# Transformers opens what this project writes; makes a Python environment first
interop:
    tests/interop/setup.sh
    tests/interop/run.sh

# the engine without std, with this artifact inside: the same tokens as the program's
embedded ARTIFACT="runs/quickstart/5-quantize":
    tests/embedded/run.sh {{ARTIFACT}}

# the engine's tests on 64-bit ARM, emulated where this machine is none
arm:
    tests/arm/run.sh

# the figures in docs/benchmarks.md
bench:
    benches/run.sh

# this program beside llama.cpp, which is built first: `just bench-peers MODEL_DIR --rounds 7 --markdown FILE`
bench-peers *ARGS:
    benches/peers/run.sh {{ARGS}}

# KL divergence by bytes beside llama.cpp, which is built first: `just bench-quant MODEL_DIR --markdown FILE --plot FILE.svg`
bench-quant *ARGS:
    benches/peers/quality.sh {{ARGS}}

# changes the files that one reader is given until it breaks, `just fuzz gguf 600` for example; needs nightly and cargo-fuzz
fuzz TARGET SECONDS="60":
    cargo run --locked --release --quiet --manifest-path fuzz/Cargo.toml --no-default-features --example seeds -- fuzz/corpus {{TARGET}}
    cargo +nightly fuzz run {{TARGET}} -- -max_total_time={{SECONDS}} -rss_limit_mb=2048 -timeout=20

# the licence texts of every crate in the program, in one file
notices FILE="THIRD-PARTY-NOTICES.txt":
    tests/supply-chain/notices.sh {{FILE}}

# everything that must hold before a change lands
ci:
    .ci/run

# what takes longer: other devices and programs, fuzzing, real recipes; `just full fuzz` for one part
full *PARTS:
    .ci/full {{PARTS}}
