//! The same for a page: a WebAssembly module, which token numbers go into and out of one by one. `std` allocates here, no more.

use std::sync::{Mutex, PoisonError};

/// The prompt, then what continues it.
static IDS: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// Appends a token to the prompt.
#[unsafe(no_mangle)]
pub extern "C" fn push(id: u32) {
    IDS.lock().unwrap_or_else(PoisonError::into_inner).push(id);
}

/// Replaces the prompt with at most `count` tokens that continue it; returns how many there are, −1 where it was refused.
#[unsafe(no_mangle)]
pub extern "C" fn continue_ids(count: u32) -> i32 {
    let mut ids = IDS.lock().unwrap_or_else(PoisonError::into_inner);
    let mut out = vec![0; count as usize];
    match compressor_embedded::continue_ids(&ids, &mut out) {
        Ok(generated) => {
            out.truncate(generated);
            *ids = out;
            generated as i32
        }
        Err(_) => -1,
    }
}

/// One of the tokens; 0 past their end.
#[unsafe(no_mangle)]
pub extern "C" fn id(index: u32) -> u32 {
    IDS.lock().unwrap_or_else(PoisonError::into_inner).get(index as usize).copied().unwrap_or(0)
}
