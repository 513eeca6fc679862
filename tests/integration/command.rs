//! Runs the program in a folder of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// A folder with the repository's datasets, in which the program runs.
pub(crate) struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs_err::create_dir(folder.path().join("datasets")).unwrap();
        let name = "datasets/home-commands.toml";
        fs_err::copy(root().join(name), folder.path().join(name)).unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs_err::write(self.path(name), text).unwrap();
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_compressor"));
        command.args(arguments).current_dir(self.folder.path()).env_remove("RUST_BACKTRACE").env_remove("RUST_LOG");
        command
    }

    /// Runs with files limited to so many blocks of 512 bytes: writes beyond fail as they do on a full disk.
    #[cfg(unix)]
    pub(crate) fn run_with_small_files(&self, blocks: usize, arguments: &[&str]) -> Ran {
        let limited = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &limited, env!("CARGO_BIN_EXE_compressor")]).args(arguments).current_dir(self.folder.path());
        Ran(command.output().unwrap())
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        Ran(self.command(arguments).output().unwrap())
    }
}

/// What a program left.
pub(crate) struct Ran(pub(crate) Output);

impl Ran {
    pub(crate) fn code(&self) -> Option<i32> {
        self.0.status.code()
    }

    pub(crate) fn stdout(&self) -> String {
        String::from_utf8(self.0.stdout.clone()).unwrap()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8(self.0.stderr.clone()).unwrap()
    }

    /// Asserts the exit code, with everything that was said where it is another one.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code(), Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout(), self.stderr());
        self
    }
}

/// Every stage on a model so small that a test can wait for it.
pub(crate) const TINY: &str = r#"name = "tiny"
seed = 3
dataset = "datasets/home-commands.toml"

[model.new]
vocab_size = 320
hidden_size = 64
layers = 3
heads = 4
kv_heads = 2
intermediate_size = 128
max_position_embeddings = 256

[[stage]]
[stage.train]
steps = 12
batch_size = 4
sequence_length = 256
warmup_steps = 2

[[stage]]
[stage.distill]
steps = 12
batch_size = 4
sequence_length = 256
save_every = 3
student.layers = 2

[[stage]]
[stage.prune]
head_ratio = 0.5
channel_ratio = 0.5
calibration_tokens = 200

[[stage]]
[stage.distill]
steps = 6
batch_size = 4
sequence_length = 256

[[stage]]
[stage.quantize]
bits = 4
group_size = 32

[[stage]]
[stage.verify]
examples = 20
kl_mean = 10.0

[budget]
artifact_bytes = 1_000_000
"#;
