//! What is said where another program cuts a file short while it is mapped: touching what is gone raises SIGBUS.
//!
//! Nothing can be saved there: the bytes that the work needs are not in the file any more. What was written before stays whole, as after
//! a kill.

/// Says from now on why it ends, with exit code 2.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
pub(crate) fn explain() {
    // SAFETY: all zeros are a `sigaction` without flags or blocked signals, and the handler calls only what a handler may call.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = say_and_end as extern "C" fn(libc::c_int) as usize;
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
    }
}

/// Elsewhere the system's own message stands.
#[cfg(not(target_os = "linux"))]
pub(crate) fn explain() {}

#[cfg(target_os = "linux")]
const WHY: &str = "error: a file was cut short or could no longer be read while it was in use: another program changed it, or its disk \
                   failed; leave the files of a model as they are while it works\n";

#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
extern "C" fn say_and_end(_: libc::c_int) {
    // SAFETY: `write` and `_exit` are async-signal-safe, and the text is a constant of this length.
    unsafe {
        libc::write(libc::STDERR_FILENO, WHY.as_ptr().cast(), WHY.len());
        libc::_exit(libc::c_int::from(crate::failure::COULD_NOT_RUN));
    }
}
