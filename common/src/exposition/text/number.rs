//! Numbers as text. Most of them are counts, or times that the kernel counts in microseconds or nanoseconds: those are
//! written by hand, as the general way would be a quarter of a scrape's cost.

use std::fmt::Write;

/// Digits of the largest count.
const DIGITS: usize = 20;
/// Numbers of so many digits are told apart by them, so that the fewest that read back as the number are these.
const EXACT: f64 = 1e15;

/// A whole number.
pub(super) fn push_count(mut count: u64, out: &mut String) {
    let mut digits = [0u8; DIGITS];
    let mut first = DIGITS;
    loop {
        first -= 1;
        digits[first] = b'0' + (count % 10) as u8;
        count /= 10;
        if count == 0 {
            break;
        }
    }
    push_digits(&digits[first..], out);
}

/// A value, in the shortest form that reads back as the same number.
pub(super) fn push_number(number: f64, out: &mut String) {
    if push_decimal(number, 6, 1e6, out) || push_decimal(number, 9, 1e9, out) {
        return;
    }
    let written = match number {
        _ if number == f64::INFINITY => out.write_str("+Inf"),
        _ if number == f64::NEG_INFINITY => out.write_str("-Inf"),
        _ if number == 0.0 || (1e-6..1e17).contains(&number.abs()) => write!(out, "{number}"),
        // NaN is written as "NaN" by both.
        _ => write!(out, "{number:e}"),
    };
    written.expect("a String takes everything");
}

/// Writes a number that is a whole one divided by `scale`, which has `places` zeros; `false` for any other.
fn push_decimal(number: f64, places: usize, scale: f64, out: &mut String) -> bool {
    let scaled = (number * scale).round();
    // The division is rounded as the reader of the digits rounds, so what it gives back is what will be read.
    if !(1e-6..EXACT).contains(&number) || scaled >= EXACT || scaled / scale != number {
        return false;
    }
    let (whole, mut fraction) = (scaled as u64 / scale as u64, scaled as u64 % scale as u64);
    push_count(whole, out);
    if fraction > 0 {
        let mut digits = [b'0'; DIGITS];
        for digit in digits[..places].iter_mut().rev() {
            *digit = b'0' + (fraction % 10) as u8;
            fraction /= 10;
        }
        let length = digits[..places].iter().rposition(|digit| *digit != b'0').map_or(0, |last| last + 1);
        out.push('.');
        push_digits(&digits[..length], out);
    }
    true
}

fn push_digits(digits: &[u8], out: &mut String) {
    out.push_str(std::str::from_utf8(digits).expect("digits are text"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(number: f64) -> String {
        let mut text = String::new();
        push_number(number, &mut text);
        text
    }

    #[test]
    fn counts_are_written_in_full() {
        for count in [0, 7, 10, 1_000_000, u64::MAX] {
            let mut text = String::new();
            push_count(count, &mut text);
            assert_eq!(text, count.to_string());
        }
    }

    proptest! {
        #[test]
        fn times_are_written_as_the_general_way_writes_them(count in 0u64..10_000_000_000_000_000, digits in 0u32..16) {
            let count = count % 10u64.pow(digits + 1);
            for scale in [1.0, 100.0, 1e6, 1e9] {
                let number = count as f64 / scale;
                if number == 0.0 || number >= 1e-6 {
                    prop_assert_eq!(text(number), number.to_string());
                }
            }
        }

        #[test]
        fn any_number_reads_back(number: f64) {
            let read: f64 = text(number).replace("Inf", "inf").parse().unwrap();
            prop_assert!(read == number || (read.is_nan() && number.is_nan()));
        }
    }
}
