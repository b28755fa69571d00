//! The signed cursor in every `id:`: where a stream was, whose it is, and until when it opens the stream again.
//!
//! `1.<key id>.<principal>.<epoch>.<entry id>.<expiry>.<mac>`, at most 128 bytes of `[A-Za-z0-9._-]`, so that a
//! browser sends it back as `Last-Event-ID` by itself and without a CORS preflight. The MAC also covers the
//! principal's name and the filter, which are not inside: a cursor holds for the same stream only.

use std::time::{SystemTime, UNIX_EPOCH};

use subtle::ConstantTimeEq;

use crate::{
    events::{EntryId, Epoch, Place},
    identity::{KeyRing, Principal, SigningKey},
};

const VERSION: &str = "1.";
const DOMAIN: &str = "vx11 cursor 1";
/// No cursor is longer; what is longer is none.
pub const LONGEST: usize = 128;
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
/// Characters of a 16-byte MAC.
const MAC_LENGTH: usize = 22;

/// A cursor as it was presented: parsed, not verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presented {
    key: [u8; 4],
    principal: u32,
    /// Where it says the stream was.
    pub place: Place,
    /// Until when it authorises, seconds since the Unix epoch.
    pub expires: u32,
    signed: Box<str>,
    mac: [u8; MAC_LENGTH],
}

impl Presented {
    /// A cursor from its text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > LONGEST {
            return None;
        }
        let (signed, mac) = text.rsplit_once('.')?;
        let mut parts = signed.strip_prefix(VERSION)?.split('.');
        let key = decode(parts.next()?)?;
        let principal = decode(parts.next()?)?;
        let epoch = Epoch(decode(parts.next()?)?);
        let id: EntryId = parts.next()?.parse().ok()?;
        let expires = decode(parts.next()?)?;
        if parts.next().is_some() {
            return None;
        }
        let mac = mac.as_bytes().try_into().ok()?;
        let place = Place { epoch, id };
        Some(Self { key: key.to_be_bytes(), principal, place, expires, signed: signed.into(), mac })
    }

    /// Whether it may be this principal's; only [`Self::verify`] knows.
    #[must_use]
    pub fn hints_at(&self, principal: &Principal) -> bool {
        hint(principal) == self.principal
    }

    /// Whether one of the keys in force signed it for this principal and filter.
    #[must_use]
    pub fn verify(&self, keys: &KeyRing, principal: &Principal, filter: &str) -> bool {
        keys.verifying()
            .filter(|key| key.id() == self.key)
            .any(|key| bool::from(mac(key, self.signed.as_bytes(), principal, filter).ct_eq(&self.mac)))
    }

    /// Whether it still authorises at this time.
    #[must_use]
    pub fn is_in_force(&self, now: u32) -> bool {
        now < self.expires
    }
}

/// Appends the text of a cursor.
pub fn write(
    out: &mut Vec<u8>,
    key: &SigningKey,
    principal: &Principal,
    filter: &str,
    place: Place,
    expires: u32,
) {
    use std::io::Write;
    let begin = out.len();
    out.extend_from_slice(VERSION.as_bytes());
    encode(out, &key.id());
    out.push(b'.');
    encode(out, &hint(principal).to_be_bytes());
    out.push(b'.');
    encode(out, &place.epoch.0.to_be_bytes());
    // Writing to memory cannot fail.
    let _ = write!(out, ".{}-{}.", place.id.milliseconds, place.id.sequence);
    encode(out, &expires.to_be_bytes());
    let mac = mac(key, out.get(begin..).unwrap_or_default(), principal, filter);
    out.push(b'.');
    out.extend_from_slice(&mac);
}

/// Seconds since the Unix epoch.
#[must_use]
pub fn now() -> u32 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u32::try_from(unix.as_secs()).unwrap_or(u32::MAX)
}

fn mac(key: &SigningKey, signed: &[u8], principal: &Principal, filter: &str) -> [u8; MAC_LENGTH] {
    let name = principal.name().as_bytes();
    // Lengths keep the parts apart; a cursor and a name are far shorter than 64 KiB.
    let length = |part: &[u8]| u16::try_from(part.len()).unwrap_or(u16::MAX).to_be_bytes();
    let full = key.sign(DOMAIN, &[&length(signed), signed, &length(name), name, filter.as_bytes()]);
    let mut text = Vec::with_capacity(MAC_LENGTH);
    encode(&mut text, full.get(..16).unwrap_or_default());
    text.try_into().unwrap_or([0; MAC_LENGTH])
}

/// A short name of the principal, to find it among the configured ones: FNV-1a.
fn hint(principal: &Principal) -> u32 {
    principal
        .name()
        .bytes()
        .fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Base64url without padding.
fn encode(out: &mut Vec<u8>, bytes: &[u8]) {
    for chunk in bytes.chunks(3) {
        let group =
            chunk.iter().fold(0_u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..=chunk.len() {
            let index = (group >> (18 - 6 * digit)) & 63;
            out.push(ALPHABET.get(index as usize).copied().unwrap_or(b'A'));
        }
    }
}

/// Four bytes of base64url, in their one spelling.
fn decode(text: &str) -> Option<u32> {
    if text.len() != 6 {
        return None;
    }
    let mut bits = 0_u64;
    for byte in text.bytes() {
        let digit = ALPHABET.iter().position(|letter| *letter == byte)?;
        bits = bits << 6 | digit as u64;
    }
    (bits.trailing_zeros() >= 4).then(|| u32::try_from(bits >> 4).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ring(text: &[u8]) -> KeyRing {
        KeyRing { current: SigningKey::new(text), previous: None }
    }

    fn text(keys: &KeyRing, name: &str, filter: &str, place: Place, expires: u32) -> String {
        let mut out = Vec::new();
        write(&mut out, &keys.current, &Principal::new(name), filter, place, expires);
        String::from_utf8(out).unwrap()
    }

    proptest! {
        #[test]
        fn a_cursor_holds_for_its_stream_and_no_other(
            epoch: u32, milliseconds: u64, sequence: u64, expires: u32, name in "[a-z]{1,200}", filter in "[a-z,;]{0,90}",
        ) {
            let (keys, place) = (ring(b"one"), Place { epoch: Epoch(epoch), id: EntryId { milliseconds, sequence } });
            let text = text(&keys, &name, &filter, place, expires);
            prop_assert!(text.len() <= LONGEST, "{} bytes", text.len());
            prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)));
            let cursor = Presented::parse(&text).unwrap();
            let principal = Principal::new(&name);
            prop_assert_eq!((cursor.place, cursor.expires), (place, expires));
            prop_assert!(cursor.hints_at(&principal));
            prop_assert!(cursor.verify(&keys, &principal, &filter));
            prop_assert!(!cursor.verify(&ring(b"two"), &principal, &filter));
            let other = Principal::new(&format!("{name}x"));
            prop_assert!(!cursor.verify(&keys, &other, &filter));
            let other = format!("{filter}x");
            prop_assert!(!cursor.verify(&keys, &principal, &other));
        }

        #[test]
        fn one_changed_character_and_it_does_not_hold(at in 0_usize..60, to in "[A-Za-z0-9._-]") {
            let (keys, place) = (ring(b"one"), Place { epoch: Epoch(7), id: EntryId { milliseconds: 1_763_900_000_000, sequence: 3 } });
            let genuine = text(&keys, "principal", "", place, 1_763_900_300);
            let mut forged = genuine.clone();
            let at = at % forged.len();
            forged.replace_range(at..=at, &to);
            let holds = Presented::parse(&forged).is_some_and(|cursor| cursor.verify(&keys, &Principal::new("principal"), ""));
            prop_assert_eq!(holds, forged == genuine);
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "\\PC{0,140}") {
            let _ = Presented::parse(&text);
        }
    }

    #[test]
    fn the_previous_key_still_verifies() {
        let place = Place { epoch: Epoch(1), id: EntryId::default() };
        let cursor = Presented::parse(&text(&ring(b"old"), "p", "", place, 9)).unwrap();
        let rotated = KeyRing { current: SigningKey::new(b"new"), previous: Some(SigningKey::new(b"old")) };
        assert!(cursor.verify(&rotated, &Principal::new("p"), ""));
        assert!(cursor.is_in_force(8) && !cursor.is_in_force(9));
    }
}
