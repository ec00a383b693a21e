//! Values and names as SQL.

use std::io::{self, Write};

use rusqlite::types::ValueRef;

/// Writes `value` so that SQLite reads the same value, of the same type, back.
pub(super) fn write_value(out: &mut dyn Write, value: ValueRef<'_>) -> io::Result<()> {
    match value {
        ValueRef::Null => out.write_all(b"NULL"),
        ValueRef::Integer(number) => write!(out, "{number}"),
        ValueRef::Real(number) if number == f64::INFINITY => out.write_all(b"9e999"),
        ValueRef::Real(number) if number == f64::NEG_INFINITY => out.write_all(b"-9e999"),
        ValueRef::Real(number) if number.is_nan() => out.write_all(b"NULL"),
        ValueRef::Real(number) => write!(out, "{number:?}"),
        ValueRef::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') => {
                out.write_all(b"'")?;
                for (at, piece) in text.split('\'').enumerate() {
                    if at > 0 {
                        out.write_all(b"''")?;
                    }
                    out.write_all(piece.as_bytes())?;
                }
                out.write_all(b"'")
            }
            _ => {
                out.write_all(b"CAST(")?;
                write_blob(out, bytes)?;
                out.write_all(b" AS TEXT)")
            }
        },
        ValueRef::Blob(bytes) => write_blob(out, bytes),
    }
}

/// Whether two values are the same, type and all: what SQL calls equal may differ in case, or in being an integer or a real.
pub(super) fn is_same(one: ValueRef<'_>, other: ValueRef<'_>) -> bool {
    match (one, other) {
        (ValueRef::Real(one), ValueRef::Real(other)) => one.to_bits() == other.to_bits(),
        (one, other) => one == other,
    }
}

fn write_blob(out: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.write_all(b"x'")?;
    let mut text = [0; 512];
    for chunk in bytes.chunks(text.len() / 2) {
        for (byte, pair) in chunk.iter().zip(text.chunks_exact_mut(2)) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        out.write_all(&text[..chunk.len() * 2])?;
    }
    out.write_all(b"'")
}
