//! Ephemeral tokens that carry their own proof: a version 8 UUID (RFC 9562) that any instance with the
//! shared signing key can check without asking anybody.
//!
//! # Layout
//! A version 8 UUID leaves 122 bits to its maker. From the most significant:
//!
//! | bits | field | |
//! |---|---|---|
//! | 16 | expiry | in units of 1/8 s, modulo 2^16 (2.3 h) |
//! | 8 | principal | a hint from the principal's name: which names to try |
//! | 1 | stored | the token was put into Redis too |
//! | 33 | nonce | 12 random bits of the process, then a counter of 21: never twice at one expiry |
//! | 64 | MAC | first half of HMAC-SHA-256 |
//!
//! The MAC covers the full expiry (not modulo), the principal's whole name, the flag and the nonce. So
//! an old token does not come alive again when the 16 bits wrap round, and two principals with the same
//! hint never pass for each other.
//!
//! # How hard it is to guess one
//! A forger picks every field and must hit a 64-bit MAC that one of at most two keys gives for a name
//! with that hint: with n principals each try succeeds with p = 2 (1 + n/256) / 2^64, about 1.1e-19 for
//! few principals. At 100,000 tries a second, all that one instance can answer, a day's 8.6e9 tries
//! succeed with 9.4e-10; an even chance takes 1.5 million years on one instance, 150,000 on ten. A token
//! guessed lives 60 s and opens one principal's streams. A random version 4 UUID at 60,000 live tokens is
//! hit with 60,000 / 2^122 = 1.1e-32 a try: better, but only by margins that no attack comes near, and it
//! needs a store that answers.

use std::{
    fmt,
    sync::atomic::{AtomicU32, Ordering},
};

use subtle::ConstantTimeEq;
use uuid::Uuid;

use crate::identity::{KeyRing, Principal, Principals, SigningKey};

/// Longest life of a token that the wrapping expiry can express, with room for clocks that differ.
pub const LONGEST_LIFE_MILLISECONDS: i64 = 3_600_000;

/// Unit of the expiry, milliseconds: issue times are rounded up to it.
pub const TICK_MILLISECONDS: i64 = 125;
const TICK: i64 = TICK_MILLISECONDS;
const DOMAIN: &str = "vx11 token 1\0";

/// The 128 bits of a token. No `Debug`, no `Display`: a token must not reach a log by accident.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenId(u128);

/// Length of a token's text.
pub const TOKEN_LENGTH: usize = 36;

impl TokenId {
    /// The token that a client presents; `None` when it has not the shape of a UUID.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == TOKEN_LENGTH).then(|| Uuid::try_parse(text).ok())?.map(|uuid| Self(uuid.as_u128()))
    }

    /// A token of these bits.
    #[must_use]
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// Writes the token's text into `buffer`; for answers and store keys, never for logs.
    pub fn encode(self, buffer: &mut [u8; TOKEN_LENGTH]) -> &str {
        Uuid::from_u128(self.0).hyphenated().encode_lower(buffer)
    }

    /// One-way fingerprint for people to compare: the first six bytes of a SHA-256. The token's 64 MAC
    /// bits are out of reach from it.
    #[must_use]
    pub fn fingerprint(self) -> impl fmt::Display {
        use sha2::{Digest, Sha256};
        let digest = Sha256::digest(self.0.to_be_bytes());
        let shown = digest.iter().take(6).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        format!("sha256:{shown:012x}")
    }
}

/// What a genuine token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// Who it was issued to.
    pub principal: Principal,
    /// When it ends, milliseconds since the Unix epoch on the cluster's clock.
    pub expires: i64,
    /// Whether its issuer put it into Redis as well.
    pub stored: bool,
}

/// What a signature check finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Signed by one of our keys for a principal that exists, and not expired.
    Genuine(Claims),
    /// Signed by one of our keys, too old.
    Expired,
    /// Not signed by our keys: forged, of another instance with another key, or of another issuer.
    Unsigned,
}

/// Gives every token of this process its own nonce.
pub struct Nonces {
    process: u64,
    counter: AtomicU32,
}

impl Nonces {
    /// Nonces of a process, told from other processes' by 12 random bits.
    #[must_use]
    pub fn new() -> Self {
        Self { process: u64::from(rand::random::<u16>()) & 0xfff, counter: AtomicU32::new(rand::random()) }
    }

    /// 33 bits; a repetition takes 2^21 more tokens, longer than any expiry tick.
    fn next(&self) -> u64 {
        self.process << 21 | u64::from(self.counter.fetch_add(1, Ordering::Relaxed)) & 0x1f_ffff
    }
}

impl Default for Nonces {
    fn default() -> Self {
        Self::new()
    }
}

/// The 122 free bits of a token, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fields {
    expiry: u16,
    hint: u8,
    stored: bool,
    nonce: u64,
    mac: u64,
}

impl Fields {
    fn pack(self) -> TokenId {
        let bits = u128::from(self.expiry) << 106
            | u128::from(self.hint) << 98
            | u128::from(self.stored) << 97
            | u128::from(self.nonce) << 64
            | u128::from(self.mac);
        // RFC 9562 section 5.8: 48 bits, version, 12 bits, variant, 62 bits.
        let (a, b, c) = (bits >> 74, bits >> 62 & 0xfff, bits & ((1 << 62) - 1));
        TokenId(a << 80 | 8 << 76 | b << 64 | 0b10 << 62 | c)
    }

    fn unpack(token: TokenId) -> Option<Self> {
        let bits = token.0;
        if bits >> 76 & 0xf != 8 || bits >> 62 & 0b11 != 0b10 {
            return None;
        }
        let bits = (bits >> 80) << 74 | (bits >> 64 & 0xfff) << 62 | bits & ((1 << 62) - 1);
        Some(Self {
            expiry: u16::try_from(bits >> 106 & 0xffff).ok()?,
            hint: u8::try_from(bits >> 98 & 0xff).ok()?,
            stored: bits >> 97 & 1 == 1,
            nonce: u64::try_from(bits >> 64 & 0x1_ffff_ffff).ok()?,
            mac: u64::try_from(bits & u128::from(u64::MAX)).ok()?,
        })
    }
}

fn hint(principal: &Principal) -> u8 {
    principal.name().bytes().fold(0x9d, |hash: u8, byte| hash.rotate_left(3) ^ byte.wrapping_mul(0x3b))
}

fn mac(key: &SigningKey, principal: &Principal, expiry_ticks: i64, stored: bool, nonce: u64) -> u64 {
    let mut fixed = [0_u8; 17];
    fixed[..8].copy_from_slice(&expiry_ticks.to_be_bytes());
    fixed[8..16].copy_from_slice(&nonce.to_be_bytes());
    fixed[16] = u8::from(stored);
    let signature = key.sign(DOMAIN, &[&fixed, principal.name().as_bytes()]);
    signature.iter().take(8).fold(0, |mac, byte| mac << 8 | u64::from(*byte))
}

/// Signs a token for `principal` that ends `life` milliseconds after `now`, rounded up to 1/8 s.
#[must_use]
pub fn issue(
    key: &SigningKey,
    nonces: &Nonces,
    principal: &Principal,
    now: i64,
    life: i64,
    stored: bool,
) -> TokenId {
    let end = now.saturating_add(life.min(LONGEST_LIFE_MILLISECONDS));
    let ticks = end.div_euclid(TICK) + i64::from(end.rem_euclid(TICK) > 0);
    let nonce = nonces.next();
    let [.., high, low] = ticks.to_be_bytes();
    Fields {
        expiry: u16::from_be_bytes([high, low]),
        hint: hint(principal),
        stored,
        nonce,
        mac: mac(key, principal, ticks, stored, nonce),
    }
    .pack()
}

/// Checks a token against every key in force and every principal that its hint allows.
#[must_use]
pub fn verify(token: TokenId, keys: &KeyRing, principals: &Principals, now: i64) -> Verdict {
    let Some(fields) = Fields::unpack(token) else {
        return Verdict::Unsigned;
    };
    // The moment nearest to now whose lower 16 bits are these.
    let now_ticks = now.div_euclid(TICK);
    let [.., high, low] = now_ticks.to_be_bytes();
    let ahead = fields.expiry.wrapping_sub(u16::from_be_bytes([high, low])).cast_signed();
    let ticks = now_ticks + i64::from(ahead);

    for principal in principals.iter().filter(|principal| hint(principal) == fields.hint) {
        for key in keys.verifying() {
            let expected = mac(key, principal, ticks, fields.stored, fields.nonce);
            if !bool::from(expected.ct_eq(&fields.mac)) {
                continue;
            }
            let expires = ticks * TICK;
            return if expires <= now {
                Verdict::Expired
            } else {
                Verdict::Genuine(Claims { principal: principal.clone(), expires, stored: fields.stored })
            };
        }
    }
    Verdict::Unsigned
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};

    use super::*;
    use crate::config::Secret;
    use proptest::prelude::*;

    const NOW: i64 = 1_790_000_000_000;

    fn principals(names: &[&str]) -> Principals {
        let tokens: BTreeMap<_, _> =
            names.iter().map(|name| ((*name).to_owned(), vec![Secret::from((*name).to_owned())])).collect();
        Principals::new(&tokens)
    }

    fn ring(key: &[u8]) -> KeyRing {
        KeyRing { current: SigningKey::new(key), previous: None }
    }

    fn text(token: TokenId) -> String {
        token.encode(&mut [0; TOKEN_LENGTH]).to_owned()
    }

    #[test]
    fn a_token_is_a_version_8_uuid_and_reads_back() {
        let (keys, nonces, a) = (ring(b"k"), Nonces::new(), Principal::new("a"));
        let token = issue(&keys.current, &nonces, &a, NOW, 60_000, true);
        let uuid = Uuid::parse_str(&text(token)).unwrap();
        assert_eq!(uuid.get_version_num(), 8);
        assert_eq!(uuid.get_variant(), uuid::Variant::RFC4122);
        assert!(TokenId::parse(&text(token)) == Some(token));
        let verdict = verify(token, &keys, &principals(&["a", "b"]), NOW + 59_999);
        assert_eq!(verdict, Verdict::Genuine(Claims { principal: a, expires: NOW + 60_000, stored: true }));
    }

    #[test]
    fn a_token_ends_with_its_life_and_never_comes_back() {
        let (keys, a, names) = (ring(b"k"), Principal::new("a"), principals(&["a"]));
        let token = issue(&keys.current, &Nonces::new(), &a, NOW, 60_000, false);
        assert!(matches!(verify(token, &keys, &names, NOW + 59_000), Verdict::Genuine(_)));
        assert_eq!(verify(token, &keys, &names, NOW + 60_125), Verdict::Expired);
        // At many ticks of its life, each time that the 16 bits have wrapped, over ten days.
        let wrap = 65_536 * TICK;
        for round in 1..=105 {
            for tick in (0..480).step_by(7) {
                let later = NOW + round * wrap + tick * TICK;
                assert_eq!(verify(token, &keys, &names, later), Verdict::Unsigned);
            }
        }
    }

    #[test]
    fn the_previous_key_verifies_and_a_foreign_one_does_not() {
        let (old, a, names) = (ring(b"old"), Principal::new("a"), principals(&["a"]));
        let token = issue(&old.current, &Nonces::new(), &a, NOW, 60_000, false);
        let rotated = KeyRing { current: SigningKey::new(b"new"), previous: Some(old.current) };
        assert!(matches!(verify(token, &rotated, &names, NOW), Verdict::Genuine(_)));
        assert_eq!(verify(token, &ring(b"new"), &names, NOW), Verdict::Unsigned);
    }

    #[test]
    fn a_principal_that_is_gone_takes_its_tokens_along() {
        let (keys, a) = (ring(b"k"), Principal::new("a"));
        let token = issue(&keys.current, &Nonces::new(), &a, NOW, 60_000, false);
        assert_eq!(verify(token, &keys, &principals(&["b", "c"]), NOW), Verdict::Unsigned);
    }

    #[test]
    fn principals_with_the_same_hint_are_told_apart() {
        let names: Vec<String> = (0..600).map(|n| format!("p{n}")).collect();
        let all = principals(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let (keys, nonces) = (ring(b"k"), Nonces::new());
        for name in &names {
            let principal = Principal::new(name);
            let token = issue(&keys.current, &nonces, &principal, NOW, 1000, true);
            let Verdict::Genuine(claims) = verify(token, &keys, &all, NOW) else { panic!("{name}") };
            assert_eq!(claims.principal, principal);
        }
    }

    #[test]
    fn tokens_of_one_moment_are_all_different() {
        let (keys, nonces, a) = (ring(b"k"), Nonces::new(), Principal::new("a"));
        let count = 200_000;
        let tokens: HashSet<_> =
            (0..count).map(|_| issue(&keys.current, &nonces, &a, NOW, 60_000, true).0).collect();
        assert_eq!(tokens.len(), count);
        let nonces: HashSet<_> = (0..1_u32 << 21).map(|_| nonces.next()).collect();
        assert_eq!(nonces.len(), 1 << 21);
    }

    #[test]
    fn a_fingerprint_shows_nothing_of_the_token() {
        let token = issue(&ring(b"k").current, &Nonces::new(), &Principal::new("a"), NOW, 60_000, true);
        let shown = token.fingerprint().to_string();
        assert!(shown.starts_with("sha256:") && shown.len() == 19, "{shown}");
        assert!(!text(token).contains(shown.trim_start_matches("sha256:")));
    }

    proptest! {
        #[test]
        fn any_bits_survive_packing(expiry: u16, hint: u8, stored: bool, nonce in 0_u64..1 << 33, mac: u64) {
            let fields = Fields { expiry, hint, stored, nonce, mac };
            prop_assert_eq!(Fields::unpack(fields.pack()), Some(fields));
        }

        #[test]
        fn any_text_is_refused_or_has_the_shape_of_a_uuid(text in "\\PC{0,40}") {
            if let Some(token) = TokenId::parse(&text) {
                prop_assert_eq!(self::text(token), text.to_ascii_lowercase());
            }
        }

        #[test]
        fn a_flipped_bit_is_a_forgery(bit in 0_u32..128, life in 1000_i64..3_600_000, stored: bool) {
            let (keys, names) = (ring(b"k"), principals(&["a", "b"]));
            let token = issue(&keys.current, &Nonces::new(), &Principal::new("a"), NOW, life, stored);
            let forged = TokenId(token.0 ^ 1 << bit);
            prop_assert_eq!(verify(forged, &keys, &names, NOW), Verdict::Unsigned);
        }

        #[test]
        fn random_tokens_are_never_genuine(bits: u128) {
            let (keys, names) = (ring(b"k"), principals(&["a", "b"]));
            prop_assert_eq!(verify(TokenId(bits), &keys, &names, NOW), Verdict::Unsigned);
        }

        #[test]
        fn a_life_is_kept_to_an_eighth_of_a_second(life in 1000_i64..=3_600_000, now in 0_i64..4_000_000_000_000) {
            let (keys, names) = (ring(b"k"), principals(&["a"]));
            let token = issue(&keys.current, &Nonces::new(), &Principal::new("a"), now, life, false);
            let genuine = |at: i64| matches!(verify(token, &keys, &names, at), Verdict::Genuine(_));
            prop_assert!(genuine(now));
            prop_assert!(genuine(now + life - 1));
            prop_assert!(!genuine(now + life + TICK));
        }
    }
}
