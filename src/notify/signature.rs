//! Signatures of deliveries: HMAC-SHA256 over the time of sending and the body.
//!
//! Source: RFC 2104; the header's form is the one that receivers of webhooks know, `t=<unix seconds>,v1=<hex>`, over
//! `<unix seconds>.<body>`, so that a copy of an old delivery can be told by its time.

use sha2::{Digest as _, Sha256};

/// Bytes of a block of SHA-256.
const BLOCK: usize = 64;

/// The header that carries the signature.
pub(super) const HEADER: &str = "x-tidegate-signature";

/// Makes the header's value for a body sent at `unix_seconds`.
pub(super) fn signature(secret: &[u8], unix_seconds: u64, body: &[u8]) -> String {
    let time = unix_seconds.to_string();
    let mac = hmac(secret, &[time.as_bytes(), b".", body]);
    format!("t={time},v1={}", hex(&mac))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

/// HMAC-SHA256 over parts as if they were one text (RFC 2104, section 2).
fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut block = [0; BLOCK];
    if key.len() > BLOCK {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let mut inner = Sha256::new();
    inner.update(block.map(|byte| byte ^ 0x36));
    for part in parts {
        inner.update(part);
    }
    let mut outer = Sha256::new();
    outer.update(block.map(|byte| byte ^ 0x5c));
    outer.update(inner.finalize());
    outer.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cases 1, 2, 3 and 6 of RFC 4231.
    #[test]
    fn hmac_is_that_of_the_rfc() {
        let cases: [(&[u8], &[u8], &str); 4] = [
            (
                &[0x0b; 20],
                b"Hi There",
                "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
            ),
            (
                b"Jefe",
                b"what do ya want for nothing?",
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
            (
                &[0xaa; 20],
                &[0xdd; 50],
                "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe",
            ),
            (
                &[0xaa; 131],
                b"Test Using Larger Than Block-Size Key - Hash Key First",
                "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
            ),
        ];
        for (key, text, expected) in cases {
            let (head, tail) = text.split_at(text.len() / 2);
            assert_eq!(hex(&hmac(key, &[head, tail])), expected);
        }
    }

    #[test]
    fn time_and_body_are_both_signed() {
        let signed = signature(b"secret", 1_700_000_000, b"{}");
        assert!(signed.starts_with("t=1700000000,v1="), "{signed}");
        assert_ne!(signed, signature(b"secret", 1_700_000_000, b"{} "));
        assert_ne!(signed[16..], signature(b"secret", 1_700_000_001, b"{}")[16..]);
    }
}
