//! Small things that both sides write: numbers, and the frame around a chunk (RFC 9112 §7.1).

/// The end of a chunked body.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Appends the line that begins a chunk of `size` bytes.
pub fn chunk(out: &mut Vec<u8>, size: usize) {
    let mut digits = [0; 16];
    let mut at = digits.len();
    let mut left = size;
    while left > 0 || at == digits.len() {
        at -= 1;
        digits[at] = b"0123456789abcdef"[left & 15];
        left >>= 4;
    }
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
}

/// Appends a number in decimal digits.
pub fn decimal(out: &mut Vec<u8>, number: u64) {
    if number < 10 {
        out.push(b'0' + u8::try_from(number).unwrap_or(0));
        return;
    }
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut left = number;
    while left > 0 {
        at -= 1;
        digits[at] = b'0' + u8::try_from(left % 10).unwrap_or(0);
        left /= 10;
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_they_are_read() {
        for size in [0, 1, 9, 10, 15, 16, 255, 4096, usize::MAX] {
            let mut out = Vec::new();
            chunk(&mut out, size);
            assert_eq!(String::from_utf8(out).unwrap(), format!("{size:x}\r\n"));
            let mut out = Vec::new();
            decimal(&mut out, size as u64);
            assert_eq!(String::from_utf8(out).unwrap(), size.to_string());
        }
    }
}
