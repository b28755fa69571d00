//! Any token and any time: no panic, and none that we did not sign is genuine.
#![no_main]

use std::{collections::BTreeMap, sync::LazyLock};

use operator_backend::{
    identity::{KeyRing, Principals, SigningKey},
    config::Secret,
    token::signed::{TokenId, Verdict, verify},
};

static KEYS: LazyLock<KeyRing> = LazyLock::new(|| KeyRing { current: SigningKey::new(b"fuzz"), previous: None });
static PRINCIPALS: LazyLock<Principals> = LazyLock::new(|| {
    Principals::new(&BTreeMap::from([("p".to_owned(), vec![Secret::from("t".to_owned())])]))
});

libfuzzer_sys::fuzz_target!(|input: (i64, &str)| {
    let (now, text) = input;
    let Some(token) = TokenId::parse(text) else { return };
    // A signature of 58 bits or more is not guessed in a fuzzing run.
    assert!(!matches!(verify(token, &KEYS, &PRINCIPALS, now.rem_euclid(1 << 48)), Verdict::Genuine(_)));
});
