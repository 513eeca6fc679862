//! Ctrl-C and the request to terminate: a training saves its state first, an answer ends with its last token, everything else ends
//! at once.
//!
//! Ending at once loses nothing either: files are written beside their place and renamed, and a run skips what is finished.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::failure::Ending;
use crate::out::errln;

static ASKS: AtomicBool = AtomicBool::new(false);
static IS_TRAINING: AtomicBool = AtomicBool::new(false);
static WAS_ASKED: AtomicBool = AtomicBool::new(false);

/// Listens from now on.
pub(crate) fn listen() -> anyhow::Result<()> {
    Ok(ctrlc::set_handler(|| {
        if ASKS.load(Ordering::SeqCst) && !WAS_ASKED.swap(true, Ordering::SeqCst) {
            if IS_TRAINING.load(Ordering::SeqCst) {
                errln!();
                errln!("saving the state after this step; once more ends at once");
            }
            return;
        }
        std::process::exit(i32::from(Ending::Interrupted.exit_code()));
    })?)
}

/// While it lives, an interruption only asks; a second one ends the program.
pub(crate) struct Asked;

impl Asked {
    /// Somebody who asks is told that the state is saved first.
    pub(crate) fn while_training() -> Self {
        IS_TRAINING.store(true, Ordering::SeqCst);
        Self::while_generating()
    }

    /// The answer ends so soon that nothing needs to be said.
    pub(crate) fn while_generating() -> Self {
        ASKS.store(true, Ordering::SeqCst);
        Self
    }

    /// True once somebody wants the work to stop.
    pub(crate) fn should_stop(&self) -> bool {
        WAS_ASKED.load(Ordering::SeqCst)
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        ASKS.store(false, Ordering::SeqCst);
        IS_TRAINING.store(false, Ordering::SeqCst);
    }
}
