//! Any `Last-Event-ID`: no panic, and none that we did not sign holds.
#![no_main]

use std::sync::LazyLock;

use operator_backend::{
    identity::{KeyRing, Principal, SigningKey},
    stream::cursor::{Presented, write},
};

static KEYS: LazyLock<KeyRing> = LazyLock::new(|| KeyRing { current: SigningKey::new(b"fuzz"), previous: None });

libfuzzer_sys::fuzz_target!(|text: &str| {
    let Some(cursor) = Presented::parse(text) else { return };
    let principal = Principal::new("p");
    let mut ours = Vec::new();
    write(&mut ours, &KEYS.current, &principal, "", cursor.place, cursor.expires);
    assert_eq!(cursor.verify(&KEYS, &principal, ""), ours == text.as_bytes());
});
