//! Ctrl-C and the request to terminate: a training saves its state first, everything else ends at once.
//!
//! Ending at once loses nothing either: files are written beside their place and renamed, and a run skips what is finished.

use std::sync::atomic::{AtomicBool, Ordering};

/// The exit code of a command that was interrupted, as shells have it: 128 and the number of SIGINT.
pub(crate) const EXIT_CODE: u8 = 130;

static IS_TRAINING: AtomicBool = AtomicBool::new(false);
static WAS_ASKED: AtomicBool = AtomicBool::new(false);

/// Listens from now on.
pub(crate) fn listen() -> anyhow::Result<()> {
    Ok(ctrlc::set_handler(|| {
        if IS_TRAINING.load(Ordering::SeqCst) && !WAS_ASKED.swap(true, Ordering::SeqCst) {
            eprintln!("\nsaving the state after this step; once more ends at once");
            return;
        }
        std::process::exit(i32::from(EXIT_CODE));
    })?)
}

/// While it lives, an interruption only asks.
pub(crate) struct Training;

impl Training {
    pub(crate) fn begins() -> Self {
        IS_TRAINING.store(true, Ordering::SeqCst);
        Self
    }

    /// True once somebody wants the training to stop.
    pub(crate) fn should_stop(&self) -> bool {
        WAS_ASKED.load(Ordering::SeqCst)
    }
}

impl Drop for Training {
    fn drop(&mut self) {
        IS_TRAINING.store(false, Ordering::SeqCst);
    }
}
