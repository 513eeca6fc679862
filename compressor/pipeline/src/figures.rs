//! Figures as a person reads them, on the terminal and in the report's page.

use compressor_format::{Check, Limit};

/// `1234567` as `1.23 M`.
pub fn count(value: f64) -> String {
    match value {
        value if value >= 1e9 => format!("{:.2} G", value / 1e9),
        value if value >= 1e6 => format!("{:.2} M", value / 1e6),
        value if value >= 1e4 => format!("{:.1} k", value / 1e3),
        value => format!("{value:.0}"),
    }
}

/// Bytes in decimal units.
pub fn bytes(value: u64) -> String {
    match value {
        0..1000 => format!("{value} B"),
        1000..1_000_000 => format!("{:.1} kB", value as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} MB", value as f64 / 1e6),
        _ => format!("{:.2} GB", value as f64 / 1e9),
    }
}

/// Seconds, without their unit.
pub fn seconds(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

/// A part of one, as per cent.
pub fn percent(value: f64) -> String {
    format!("{:.1} %", 100.0 * value)
}

/// With a sign that is as wide as the other one.
pub fn signed(value: f64, decimals: usize) -> String {
    let text = format!("{:.decimals$}", value.abs());
    match text.bytes().all(|digit| matches!(digit, b'0' | b'.')) {
        true => text,
        false => format!("{}{text}", if value < 0.0 { '−' } else { '+' }),
    }
}

/// A compression ratio.
pub fn ratio(value: f64) -> String {
    format!("{value:.2}×")
}

/// A perplexity.
pub fn perplexity(value: f64) -> String {
    format!("{value:.3}")
}

/// A check's value or its limit.
pub fn figure(value: f64, unit: &str) -> String {
    match unit {
        "bytes" => bytes(value as u64),
        "×" => ratio(value),
        "ms" => format!("{value:.2} ms"),
        _ if value == 0.0 || value == 1.0 => format!("{value}"),
        _ if value.abs() < 1e-3 => format!("{value:.2e}"),
        _ => format!("{value:.4}"),
    }
}

/// A check's limit with its side; empty where it was only measured.
pub fn limit(check: &Check) -> String {
    match (check.limit, check.threshold) {
        (Some(Limit::AtMost), Some(threshold)) => format!("≤ {}", figure(threshold, &check.unit)),
        (Some(Limit::AtLeast), Some(threshold)) => format!("≥ {}", figure(threshold, &check.unit)),
        _ => String::new(),
    }
}

/// A whole number with commas between thousands.
pub fn whole(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.char_indices() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_set_apart_wherever_they_begin() {
        let shown: Vec<String> = [0, 999, 1_000, 12_345, 123_456, 1_234_567].into_iter().map(whole).collect();
        assert_eq!(shown, ["0", "999", "1,000", "12,345", "123,456", "1,234,567"]);
    }

    #[test]
    fn figures_have_their_units() {
        assert_eq!((count(999.0), count(722_048.0), count(3_016_960.0)), ("999".into(), "722.0 k".into(), "3.02 M".into()));
        assert_eq!([999, 1000, 531_192, 12_071_912].map(bytes), ["999 B", "1.0 kB", "531.2 kB", "12.07 MB"]);
        assert_eq!(
            (figure(0.0, ""), figure(5.2e-4, "nats/token"), figure(0.02, "")),
            ("0".into(), "5.20e-4".into(), "0.0200".into())
        );
    }
}
