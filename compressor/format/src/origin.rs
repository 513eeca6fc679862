//! What an error calls the file that something was read from.

use alloc::borrow::ToOwned;
use alloc::string::String;

/// What an error calls the file or folder that something was read from: its path, or a text where there is no file system.
pub trait Origin {
    /// As it stands in front of an error.
    fn shown(&self) -> String;
}

/// An origin to keep: without `std` there are no paths.
#[cfg(feature = "std")]
pub(crate) type Kept = std::path::PathBuf;
#[cfg(not(feature = "std"))]
pub(crate) type Kept = String;

impl<T: Origin + ?Sized> Origin for &T {
    fn shown(&self) -> String {
        (**self).shown()
    }
}

impl Origin for str {
    fn shown(&self) -> String {
        self.to_owned()
    }
}

impl Origin for String {
    fn shown(&self) -> String {
        self.clone()
    }
}

#[cfg(feature = "std")]
impl Origin for std::path::Path {
    fn shown(&self) -> String {
        self.display().to_string()
    }
}

#[cfg(feature = "std")]
impl Origin for std::path::PathBuf {
    fn shown(&self) -> String {
        self.display().to_string()
    }
}
