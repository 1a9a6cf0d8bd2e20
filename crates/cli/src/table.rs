//! Columns, and numbers as people read them.

use std::fmt::{self, Write};

/// Columns that a line of text should not exceed.
const WIDTH: usize = 110;

/// Rows with a name and the same number of cells each.
#[derive(Default)]
pub struct Table(Vec<(String, Vec<String>)>);

impl Table {
    /// Adds a row.
    pub fn row(&mut self, name: &str, cells: Vec<String>) {
        self.0.push((name.into(), cells));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = |s: &String| s.chars().count();
        let names = self.0.iter().map(|(name, _)| length(name)).max().unwrap_or(0);
        let cells = self.0.iter().flat_map(|(_, cells)| cells).map(length).max().unwrap_or(0);
        for (name, row) in &self.0 {
            write!(f, "  {name:names$}")?;
            for cell in row {
                write!(f, "  {cell:>cells$}")?;
            }
            f.write_char('\n')?;
        }
        Ok(())
    }
}

/// Appends `text` after `start`, broken between words, further lines under the first.
pub fn wrapped(out: &mut String, start: &str, text: &str) {
    let indent = start.chars().count();
    out.push_str(start);
    let mut column = indent;
    for word in text.split(' ') {
        let length = word.chars().count();
        if column > indent && column + 1 + length > WIDTH {
            let _ = write!(out, "\n{:indent$}", "");
            column = indent;
        } else if column > indent {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
    }
    out.push('\n');
}

/// A number with its digits in groups of three.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut grouped = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A text with its first letter large.
pub fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// A number of things.
pub fn plural(n: u64, thing: &str) -> String {
    let things = match thing.strip_suffix('y') {
        _ if n == 1 => thing.into(),
        Some(stem) => format!("{stem}ies"),
        None => format!("{thing}s"),
    };
    format!("{} {things}", count(n))
}

/// Nanoseconds in the unit that suits them.
pub fn duration(ns: u64) -> String {
    let (unit, name) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (1_000, "us"),
        1_000_000..1_000_000_000 => (1_000_000, "ms"),
        _ => (1_000_000_000, "s"),
    };
    // Whole numbers throughout: what is printed does not depend on rounding.
    format!("{}.{} {name}", ns / unit, ns % unit * 10 / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_000), "1,000");
        assert_eq!(count(u64::MAX), "18,446,744,073,709,551,615");
        assert_eq!((plural(1, "byte"), plural(2, "copy")), ("1 byte".into(), "2 copies".into()));
        assert_eq!(duration(999), "999 ns");
        assert_eq!(duration(1_999), "1.9 us");
        assert_eq!(duration(61_000_000_000), "61.0 s");
    }

    #[test]
    fn long_text_is_broken_between_words() {
        let mut out = String::new();
        wrapped(&mut out, "start ", &"word ".repeat(40));
        assert!(out.lines().count() > 1, "{out}");
        assert!(out.lines().all(|l| l.chars().count() <= WIDTH), "{out}");
        assert!(out.lines().skip(1).all(|l| l.starts_with("      ")), "{out}");
    }
}
