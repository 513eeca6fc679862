# What a contributor runs. `just` alone lists it.

_default:
    @just --list

# every test; those on real models say that they were skipped where COMPRESSOR_ASSETS is not set
test:
    cargo test --release --workspace

# format and lints, as CI asks for them
lint:
    cargo fmt --all --check
    cargo clippy --release --workspace --all-targets -- -D warnings

# the whole chain on generated data
quickstart:
    cargo run --release -- run recipes/quickstart.toml

# Transformers opens what this project writes; makes a Python environment first
interop:
    tests/interop/setup.sh
    tests/interop/run.sh

# the figures in docs/benchmarks.md
bench:
    benches/run.sh

# everything that must hold before a change lands
ci:
    .ci/run
