//! What the fuzz targets share: input files, a meter of memory, and everything that can be asked of a model.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

use compressor_engine::{Engine, Logits, Options};
use compressor_format::{ArtifactTensor, Error, Model, TensorSlice};

/// Counts the bytes that are in use, and the most that ever were.
struct Meter;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static METER: Meter = Meter;

// SAFETY: every call goes to the system's allocator with the arguments it came with.
unsafe impl GlobalAlloc for Meter {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let before = IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        MOST.fetch_max(before + layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// What a reader may take whatever it reads: thread pools, tables of regular expressions, 4,096 layers of a few bytes each.
const ALLOWED_BYTES: usize = 64 << 20;
/// What it may take for each byte of its files: four bits become an f32, and some copies are in flight at once.
const ALLOWED_PER_BYTE: usize = 64;

/// Runs `read` on files of `bytes` bytes together, and holds it to memory in proportion.
///
/// # Panics
/// Where more is allocated: sizes that a file claims were believed before they were checked.
pub fn in_proportion<T>(bytes: usize, read: impl FnOnce() -> T) -> T {
    // Threads of rayon's own would only wait for each other: an input is small.
    static ALONE: Once = Once::new();
    ALONE.call_once(|| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread();
        pool.build_global().expect("nothing has used the pool yet");
    });
    let before = IN_USE.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let result = read();
    let took = MOST.load(Ordering::Relaxed).saturating_sub(before);
    let allowed = ALLOWED_BYTES + ALLOWED_PER_BYTE * bytes;
    assert!(took <= allowed, "{took} bytes of memory for {bytes} bytes of files");
    result
}

/// A folder with these files, in memory where the system has such a place; removed when dropped.
pub fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let shared_memory = Path::new("/dev/shm");
    let folder = match shared_memory.is_dir() {
        true => tempfile::tempdir_in(shared_memory),
        false => tempfile::tempdir(),
    };
    let folder = folder.expect("a temporary folder");
    for (name, bytes) in files {
        fs_err::write(folder.path().join(name), bytes).expect("a file in a temporary folder");
    }
    folder
}

/// An input's parts, which zero bytes keep apart: text has none, and what follows the last one may have any.
pub fn parts<const N: usize>(input: &[u8]) -> Option<[&[u8]; N]> {
    let parts: Vec<&[u8]> = input.splitn(N, |byte| *byte == 0).collect();
    parts.try_into().ok()
}

/// A refusal names the file or the folder.
///
/// # Panics
/// Where it does not.
pub fn check_refusal(error: &Error, path: &Path) {
    let text = error.to_string();
    assert!(text.contains(&path.display().to_string()), "a refusal that names no file: {text}");
}

/// A tensor has the bytes that its type and shape ask for.
///
/// # Panics
/// Where it has more or fewer.
pub fn check_slice(slice: &TensorSlice) {
    let elements = slice.shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size)).expect("a file's sizes fit");
    assert_eq!(slice.bytes.len(), elements * slice.dtype.bytes(), "{slice:?}");
}

/// Reads every tensor of a model, and runs it on a few tokens.
///
/// # Panics
/// Where a tensor is not what the architecture says, or where what opened does not run.
pub fn ask_model(model: &Model) {
    let architecture = model.architecture();
    assert!(model.weight_bytes().expect("it opened") > 0);
    for id in architecture.tensors() {
        let expected: usize = architecture.shape(id).iter().product();
        match model.values(id) {
            Ok(values) => {
                assert_eq!(values.len(), expected, "{id}");
                assert!(values.iter().all(|value| value.is_finite()), "{id}");
            }
            Err(error) => check_refusal(&error, model.path()),
        }
        match model {
            Model::Checkpoint(checkpoint) => checkpoint.mapped(id).iter().for_each(check_slice),
            Model::Artifact(artifact) => match artifact.tensor(id) {
                ArtifactTensor::Dense(slice) => check_slice(&slice),
                ArtifactTensor::Quantized(matrix) => assert_eq!([matrix.rows, matrix.columns], *architecture.shape(id)),
                ArtifactTensor::Codebooks(matrix) => {
                    let decoded = matrix.decoded();
                    assert_eq!(decoded.shape, architecture.shape(id));
                    check_slice(&decoded);
                }
            },
        }
    }
    let Ok(engine) = Engine::load(model, Options { threads: Some(1), ..Options::default() }) else { return };
    let last = architecture.vocab_size - 1;
    // One token multiplies matrices with a vector, many at once with a matrix: two ways through the engine.
    for tokens in [vec![0], vec![0, last as u32, 0, 0, last as u32, 0, 0]] {
        if let Ok(logits) = engine.forward(&mut engine.cache(0), &tokens, Logits::All) {
            assert_eq!(logits.len(), tokens.len() * architecture.vocab_size);
        }
    }
}
