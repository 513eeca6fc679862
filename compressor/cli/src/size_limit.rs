//! The limit on the size of files (`ulimit -f`).

/// Lets writes beyond the limit fail with an error, which names the file and the way out; as the system has it, a signal ends the
/// program without a word. To be called first in `main`.
pub(crate) fn fail_where_files_are_limited() {
    #[cfg(unix)]
    {
        #[allow(unsafe_code)]
        // SAFETY: no other thread runs yet, and ignoring a signal runs no code of ours when it comes.
        unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        }
    }
}
