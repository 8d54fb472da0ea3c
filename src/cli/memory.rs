//! Memory of this process, from the system.

/// The most memory that this process has held, in bytes; 0 where the system does not say.
pub(super) fn peak_rss_bytes() -> u64 {
    status("VmHWM:")
}

/// What it holds now.
pub(super) fn rss_bytes() -> u64 {
    status("VmRSS:")
}

fn status(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix(field));
    let kib = line.and_then(|l| l.trim().strip_suffix("kB")).and_then(|n| n.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
