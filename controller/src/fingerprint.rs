//! Short digests that tell whether something changed.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

/// 16 hex digits of anything that serialises the same way every time.
#[must_use]
pub fn of_value(value: &serde_json::Value) -> String {
    hex(&Sha256::digest(value.to_string().as_bytes()), 8)
}

/// 16 hex digits of a map of texts.
#[must_use]
pub fn of_map(map: &BTreeMap<String, String>) -> String {
    let mut hasher = Sha256::new();
    for (key, value) in map {
        for part in [key, value] {
            hasher.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            hasher.update(part.as_bytes());
        }
    }
    hex(&hasher.finalize(), 8)
}

/// 6 hex digits of a secret. It is written where everyone who sees pods can read it, so it is short: enough
/// to notice a change (one in 16 million goes unnoticed), too little to confirm a guess.
#[must_use]
pub fn of_secret(secret: &[u8]) -> String {
    hex(&Sha256::digest(secret), 3)
}

fn hex(bytes: &[u8], length: usize) -> String {
    use std::fmt::Write;

    bytes.iter().take(length).fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_between_keys_and_values_count() {
        let left = BTreeMap::from([("ab".to_owned(), "c".to_owned())]);
        let right = BTreeMap::from([("a".to_owned(), "bc".to_owned())]);
        assert_ne!(of_map(&left), of_map(&right));
        assert_eq!(of_map(&left).len(), 16);
    }

    #[test]
    fn a_secret_leaves_six_digits() {
        assert_eq!(of_secret(b"correct horse").len(), 6);
        assert_ne!(of_secret(b"correct horse"), of_secret(b"battery staple"));
    }
}
