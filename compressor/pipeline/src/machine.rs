//! What figures were measured on.

use compressor_format::Machine;

/// The machine this runs on.
pub fn describe() -> Machine {
    Machine {
        processor: processor().unwrap_or_else(|| "unknown".to_owned()),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
    }
}

fn processor() -> Option<String> {
    let text = fs_err::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Most memory this process has held so far, in bytes, where the operating system tells (Linux's `VmHWM`).
pub fn peak_memory_bytes() -> Option<u64> {
    let text = fs_err::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// Forgets the peak: [`peak_memory_bytes`] tells of what comes from here on, where the operating system can (Linux's `clear_refs`).
pub(crate) fn forget_peak_memory() {
    // Where it can't, the peak stays that of all steps so far, which is no less.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
